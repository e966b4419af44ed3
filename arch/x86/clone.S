# asc_clone(flags, sp, entry, vault, mailbox, script, id) -> child's id or -errno
#
# The one clone() of the set-up task. The child does not return: it goes to `entry` in the vault with the registers
# that birth.S wants. Called by set-up code only, which has a stack; the child must not touch it.
#
#   in        4(%esp) flags   8 child's stack pointer   12 entry   16 vault   20 mailbox   24 script
#             28 where the kernel stores the child's id before the child runs
#   child     %ebx vault   %ebp mailbox   %esi script   %esp as given   flags clean (clone() copies them)
#   clobbers  %eax %ecx %edx %xmm7, flags
#
# clone() looks at %esi and %edi only for flags that the builder in src/clone.rs cannot produce (TLS, a place to write to
# later), and copies the XMM registers: they carry what the child needs.
FUNC asc_clone
    push    %ebx
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %ebx, 0
    push    %esi
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %esi, 0
    push    %edi
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %edi, 0
    push    %ebp
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %ebp, 0
    mov     5 * WORD(%esp), %ebx
    mov     6 * WORD(%esp), %ecx
    mov     7 * WORD(%esp), %edi
    movd    8 * WORD(%esp), %xmm7
    mov     11 * WORD(%esp), %edx
    mov     9 * WORD(%esp), %ebp
    mov     10 * WORD(%esp), %esi
    pushl   $EFLAGS_CLEAN               # DF, AC, TF, NT: T has no stack to clear them with
    .cfi_adjust_cfa_offset 4
    popfl
    .cfi_adjust_cfa_offset -4
    mov     $NR_CLONE, %eax
    int     $0x80
    test    %eax, %eax
    jz      1f
    pop     %ebp
    .cfi_adjust_cfa_offset -4
    .cfi_restore %ebp
    pop     %edi
    .cfi_adjust_cfa_offset -4
    .cfi_restore %edi
    pop     %esi
    .cfi_adjust_cfa_offset -4
    .cfi_restore %esi
    pop     %ebx
    .cfi_adjust_cfa_offset -4
    .cfi_restore %ebx
    ret
1:  .cfi_undefined %eip                 # the root of a task: debuggers stop here
    movd    %xmm7, %ebx
    jmp     *%edi                       # by register, into the vault; no guest code runs yet
END asc_clone
