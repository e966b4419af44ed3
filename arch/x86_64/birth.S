# asc_trusted_birth, asc_script: how T and U come to life, and how T executes verdicts
#
# Part of T's code: position-independent, copied into the vault. A script is a list of system calls in a verdict, which
# only the supervisor can write. T enters at asc_trusted_birth, loses its stack pointer there, and goes on to serve; U
# enters at asc_script and leaves by its script's last call, a (rt_)sigreturn that sets every register and jumps to
# guest code. deep.S enters at asc_script with the broker's verdict.
#
#   parameters   %rbx vault   %rbp mailbox   %r15 script   in a verdict: %r12d turn word   %r13d number of the verdict
#   locals       %r15 next step   %r14 saved result
#   temporaries  %rax, the argument registers, %rcx, %r11
#
# Must never: touch the stack; store outside the mailbox; branch through a register or memory.
.macro STEP_ARG i:req, reg:req
    mov     STEP_ARGS + \i * WORD(%r15), \reg
    test    $(1 << \i), %r11d
    cmovnz  %r14, \reg
.endm

TRUSTED_FUNC asc_trusted_birth
    .cfi_undefined %rip
    xor     %esp, %esp                  # poison: no signal frame can be built for T, ever
LABEL asc_trusted_birth_unpoisoned      # tests enter here to show what the line above is worth
    cld
    fninit
    ldmxcsr VAULT_MXCSR(%rbx)
LABEL asc_script
    mov     STEP_NR(%r15), %eax
    cmp     $STEP_BORE, %eax            # the pseudo steps are the highest numbers
    jae     asc_script_special
    mov     STEP_FLAGS(%r15), %r11d
    STEP_ARG 0, %rdi
    STEP_ARG 1, %rsi
    STEP_ARG 2, %rdx
    STEP_ARG 3, %r10
    STEP_ARG 4, %r8
    STEP_ARG 5, %r9
    syscall
    mov     STEP_FLAGS(%r15), %ecx
    test    $STEP_CLONE, %ecx
    jz      1f
    test    %rax, %rax
    jz      asc_script_child
1:  test    $STEP_SAVE, %ecx
    cmovnz  %rax, %r14
    test    $STEP_KEEP, %ecx
    jz      2f
    mov     %rax, MAILBOX_RESULT(%rbp)
2:  test    $STEP_STOP | STEP_TELL | STEP_MUST, %ecx
    jz      3f
    cmp     $-MAX_ERRNO, %rax
    jae     asc_script_error
3:  test    $STEP_CHECK, %ecx
    jz      4f
    cmp     STEP_EXPECT(%r15), %rax
    jne     asc_script_fail
4:  add     $STEP_SIZE, %r15
    jmp     asc_script

LABEL asc_script_error
    test    $STEP_STOP, %ecx
    jnz     asc_direct_reply
    test    $STEP_TELL, %ecx
    jnz     asc_deep_ask
LABEL asc_script_fail
    test    $STEP_AGAIN, %ecx
    jnz     5f
    mov     %rax, MAILBOX_BIRTH_RESULT(%rbp)
    mov     STEP_ID(%r15), %edi
    mov     $NR_EXIT, %eax
    syscall
    ud2
5:  sub     $STEP_SIZE, %r15            # the step before
    jmp     asc_script

LABEL asc_script_child                  # the new task: all it keeps of its creator is the vault
    mov     STEP_EXPECT(%r15), %rbp
    lea     VERDICT_T(%rbp), %r15
    test    $STEP_CLONE_T, %ecx
    jnz     asc_trusted_birth
    lea     VERDICT_U(%rbp), %r15
    jmp     asc_script

LABEL asc_script_special
    je      asc_deep_bore
    cmp     $STEP_SERVE, %eax
    je      asc_direct
    mov     STEP_FLAGS(%r15), %ecx      # STEP_REPLY
    test    $STEP_KEEP, %ecx
    jnz     asc_direct_replied
    mov     STEP_ARGS(%r15), %rax
    test    $1, %ecx
    cmovnz  %r14, %rax
    jmp     asc_direct_reply
END asc_trusted_birth
