//! What a process has: it must be the same before and after.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Mappings and bytes that the allocator may come to keep.
const MAPPINGS: usize = 8;
const RESIDENT: usize = 16 << 20;

/// Counts of what a process has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Children, zombies included.
    children: Vec<String>,
    threads: usize,
    descriptors: usize,
    mappings: usize,
    /// Bytes.
    resident: usize,
    /// Files in the folder for dumps.
    files: usize,
}

impl Count {
    /// What this process has now.
    pub fn now(folder: &Path) -> Result<Self> {
        let entries = |path: &Path| -> Result<usize> {
            Ok(fs::read_dir(path).with_context(|| format!("{}", path.display()))?.count())
        };
        let statm = fs::read_to_string("/proc/self/statm")?;
        let pages: usize = statm.split(' ').nth(1).context("statm")?.parse()?;
        let mut children = Vec::new();
        for task in fs::read_dir("/proc/self/task")? {
            // A thread that ends meanwhile has none.
            let text = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            children.extend(text.split_whitespace().map(str::to_owned));
        }
        Ok(Self {
            children,
            threads: entries(Path::new("/proc/self/task"))?,
            descriptors: entries(Path::new("/proc/self/fd"))?,
            mappings: fs::read_to_string("/proc/self/maps")?.lines().count(),
            resident: pages * 4096,
            files: entries(folder)?,
        })
    }

    /// Waits until nothing is left of what has come since; what is, if it does not go.
    pub fn balance(&self, folder: &Path, patience: Duration) -> Result<Option<String>> {
        let end = Instant::now() + patience;
        loop {
            let now = Self::now(folder)?;
            if self.holds(&now) {
                return Ok(None);
            }
            if Instant::now() > end {
                return Ok(Some(format!("before: {self:?}\nafter:  {now:?}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn holds(&self, now: &Self) -> bool {
        (&now.children, now.threads, now.descriptors, now.files)
            == (&self.children, self.threads, self.descriptors, self.files)
            && now.mappings <= self.mappings + MAPPINGS
            && now.resident <= self.resident + RESIDENT
    }
}
