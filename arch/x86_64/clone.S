# asc_clone(flags, sp, entry, vault, mailbox, script, id) -> child's id or -errno
#
# The one clone() of the set-up task. The child does not return: it goes to `entry` in the vault with the registers
# that birth.S wants. Called by set-up code only, which has a stack; the child must not touch it.
#
#   in        %rdi flags   %rsi child's stack pointer   %rdx entry   %rcx vault   %r8 mailbox   %r9 script
#             8(%rsp) where the kernel stores the child's id before the child runs
#   child     %rbx vault   %rbp mailbox   %r15 script   %rsp as given   flags clean (clone() copies them)
#   clobbers  %rax %rcx %rdx %r8 %r10 %r11, flags
FUNC asc_clone
    push    %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    push    %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    push    %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r14, 0
    push    %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r15, 0
    mov     %rdx, %r14
    mov     %rcx, %rbx
    mov     %r8, %rbp
    mov     %r9, %r15
    pushq   $EFLAGS_CLEAN               # DF, AC, TF, NT: T has no stack to clear them with
    .cfi_adjust_cfa_offset 8
    popfq
    .cfi_adjust_cfa_offset -8
    mov     5 * WORD(%rsp), %rdx        # written once, now; no child_tid or TLS: nothing to write to later
    xor     %r10d, %r10d
    xor     %r8d, %r8d
    mov     $NR_CLONE, %eax
    syscall
    test    %rax, %rax
    jz      1f
    pop     %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r15
    pop     %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r14
    pop     %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbp
    pop     %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
    ret
1:  .cfi_undefined %rip                 # the root of a task: debuggers stop here
    jmp     *%r14                       # by register, into the vault; no guest code runs yet
END asc_clone
