# asc_trusted_birth, asc_script: how T and U come to life
#
# Part of T's code: position-independent, copied into the vault. A script is a list of system calls in a verdict page,
# which only the supervisor can write. The interpreter serves both tasks: T enters at asc_trusted_birth, loses its
# stack pointer there, and goes on to serve; U enters at asc_script and leaves by the script's last call, a
# (rt_)sigreturn that sets every register and jumps to guest code.
#
#   parameters   %rbx vault page   %rbp mailbox   %r15 script
#   locals       %r15 next step
#   temporaries  %rax, the argument registers, %rcx, %r11
#
# Must never: touch the stack; store outside the mailbox; branch through a register or memory.
TRUSTED_FUNC asc_trusted_birth
    .cfi_undefined %rip
    xor     %esp, %esp                  # poison: no signal frame can be built for T, ever
LABEL asc_trusted_birth_unpoisoned      # tests enter here to show what the line above is worth
    cld
    fninit
    ldmxcsr VAULT_MXCSR(%rbx)
LABEL asc_script
    mov     STEP_NR(%r15), %eax
    cmp     $STEP_SERVE, %eax
    je      asc_direct
    mov     STEP_ARGS + 0 * WORD(%r15), %rdi
    mov     STEP_ARGS + 1 * WORD(%r15), %rsi
    mov     STEP_ARGS + 2 * WORD(%r15), %rdx
    mov     STEP_ARGS + 3 * WORD(%r15), %r10
    mov     STEP_ARGS + 4 * WORD(%r15), %r8
    mov     STEP_ARGS + 5 * WORD(%r15), %r9
    syscall
    testl   $STEP_CHECK, STEP_FLAGS(%r15)
    jz      1f
    cmp     STEP_EXPECT(%r15), %rax
    jne     2f
1:  add     $STEP_SIZE, %r15
    jmp     asc_script
2:  mov     %rax, MAILBOX_BIRTH_RESULT(%rbp)
    mov     STEP_ID(%r15), %edi
    mov     $NR_EXIT, %eax
    syscall
    ud2
END asc_trusted_birth
