//! Mappings of memory.

use super::{Case, Refusal, refuse};
use crate::abi::PAGE;
use crate::sys::{Errno, Sysno};

const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;
/// `MAP_SHARED`, `PRIVATE`, `SHARED_VALIDATE`, `FIXED`, `ANONYMOUS`, `32BIT`, `DENYWRITE`, `EXECUTABLE`, `NORESERVE`,
/// `POPULATE`, `NONBLOCK`, `STACK`, `FIXED_NOREPLACE`. Not `GROWSDOWN`, which moves by itself, nor `LOCKED`.
const MAP_KNOWN: usize = 0x3 | 0x10 | 0x20 | 0x40 | 0x800 | 0x1000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000 | 0x10_0000;
const PROT_KNOWN: usize = 7;
const MREMAP_MAYMOVE: usize = 1;
const MREMAP_FIXED: usize = 2;
const MREMAP_DONTUNMAP: usize = 4;
/// The lowest address that a guest may map (`mmap_min_addr` may be lower, or not apply).
const LOW: usize = 64 * 1024;
/// `MADV_NORMAL` to `DONTNEED`, `FREE`, `HUGEPAGE`, `NOHUGEPAGE`, `DONTDUMP`, `DODUMP`, `COLD`, `PAGEOUT`.
const MADVICE: [usize; 12] = [0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 20, 21];

impl Case<'_, '_, '_> {
    /// A range, rounded to pages, that meets nothing of the sandbox's own.
    fn range(&self, addr: usize, len: usize) -> Result<(), Refusal> {
        let rounded = len.max(1).checked_next_multiple_of(PAGE).and_then(|len| (addr & !(PAGE - 1)).checked_add(len));
        // An address within a page moves the end by one more.
        let end = rounded.and_then(|end| end.checked_add(if addr % PAGE == 0 { 0 } else { PAGE }));
        let end = end.ok_or(refuse(Errno::EINVAL, "the range wraps around"))?;
        if addr < self.view.own.1 && end > self.view.own.0 {
            return Err(refuse(Errno::EPERM, "the range meets the sandbox's own memory"));
        }
        Ok(())
    }

    fn protection(&self, prot: usize, of_file: bool) -> Result<(), Refusal> {
        let known = prot & !PROT_KNOWN == 0;
        match known && self.view.policy.allows_protection(prot, of_file) {
            true => Ok(()),
            false => Err(refuse(Errno::EACCES, "the policy does not allow this protection")),
        }
    }

    pub(super) fn memory(&mut self, call: Sysno, args: &[usize; 6]) -> Result<bool, Refusal> {
        let [a, b, c, d, e, _] = *args;
        match call {
            #[cfg(target_arch = "x86_64")]
            Sysno::mmap => return self.mmap(call, args).map(|()| true),
            #[cfg(target_arch = "x86")]
            Sysno::mmap2 => return self.mmap(call, args).map(|()| true),
            Sysno::munmap | Sysno::msync | Sysno::mincore => self.range(a, b)?,
            Sysno::mprotect => {
                self.range(a, b)?;
                self.protection(c, false)?;
            }
            Sysno::madvise => {
                self.range(a, b)?;
                if !MADVICE.contains(&c) {
                    return Err(refuse(Errno::EINVAL, "this advice is not allowed"));
                }
            }
            Sysno::mremap => {
                self.range(a, b)?; // where it grows in place, or moves to, nothing is: the kernel sees to that
                if d & !(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) != 0 {
                    return Err(refuse(Errno::EINVAL, "mremap with more than is known here"));
                }
                if d & (MREMAP_FIXED | MREMAP_DONTUNMAP) != 0 {
                    self.range(e, c)?;
                    if d & MREMAP_FIXED != 0 || e != 0 {
                        low(e)?;
                    }
                }
            }
            Sysno::brk => {
                // Between the old and the new end lies what the kernel gives or takes; it never maps over anything.
                if a >= self.view.own.0 && a < self.view.own.1 {
                    return Err(refuse(Errno::ENOMEM, "the range meets the sandbox's own memory"));
                }
            }
            _ => return Ok(false),
        }
        if call == Sysno::mincore {
            self.target(c)?;
        }
        self.script.only(call, *args);
        Ok(true)
    }

    fn mmap(&mut self, call: Sysno, args: &[usize; 6]) -> Result<(), Refusal> {
        let [mut a, b, c, d, e, f] = *args;
        if d & !MAP_KNOWN != 0 {
            return Err(refuse(Errno::EINVAL, "mmap with flags that are not allowed"));
        }
        self.protection(c, d & MAP_ANONYMOUS == 0)?;
        if d & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
            self.range(a, b)?;
            low(a)?;
        } else if a < LOW {
            a = 0; // a wish, as which the kernel takes one below its own limit, too
        }
        if d & MAP_ANONYMOUS == 0 {
            self.guest_fd(e)?;
        }
        self.script.only(call, [a, b, c, d, e, f]);
        Ok(())
    }
}

fn low(addr: usize) -> Result<(), Refusal> {
    if addr < LOW { Err(refuse(Errno::EPERM, "the address is too low")) } else { Ok(()) }
}
