# asc_trusted_birth, asc_script: how T and U come to life
#
# Part of T's code: position-independent, copied into the vault. A script is a list of system calls in a verdict page,
# which only the supervisor can write. The interpreter serves both tasks: T enters at asc_trusted_birth, loses its
# stack pointer there, and goes on to serve; U enters at asc_script and leaves by the script's last call, a
# (rt_)sigreturn that sets every register and jumps to guest code.
#
#   parameters   %ebx vault page   %ebp mailbox   %esi script
#   locals       %xmm7 vault page   %xmm6 mailbox   %xmm5 next step (a call takes every general register)
#   temporaries  %eax %ebx %ecx %edx %esi %edi %ebp
#
# int $0x80 only: sysenter reads a word from the stack.
# Must never: touch the stack; store outside the mailbox; branch through a register or memory.
TRUSTED_FUNC asc_trusted_birth
    .cfi_undefined %eip
    xor     %esp, %esp                  # poison: no signal frame can be built for T, ever
LABEL asc_trusted_birth_unpoisoned      # tests enter here to show what the line above is worth
    cld
    fninit
    ldmxcsr VAULT_MXCSR(%ebx)
LABEL asc_script
    movd    %ebx, %xmm7
    movd    %ebp, %xmm6
1:  movd    %esi, %xmm5
    mov     STEP_NR(%esi), %eax
    cmp     $STEP_SERVE, %eax
    je      asc_direct
    mov     STEP_ARGS + 0 * WORD(%esi), %ebx
    mov     STEP_ARGS + 1 * WORD(%esi), %ecx
    mov     STEP_ARGS + 2 * WORD(%esi), %edx
    mov     STEP_ARGS + 4 * WORD(%esi), %edi
    mov     STEP_ARGS + 5 * WORD(%esi), %ebp
    mov     STEP_ARGS + 3 * WORD(%esi), %esi
    int     $0x80
    movd    %xmm5, %esi
    testl   $STEP_CHECK, STEP_FLAGS(%esi)
    jz      2f
    cmp     STEP_EXPECT(%esi), %eax
    jne     3f
2:  add     $STEP_SIZE, %esi
    jmp     1b
3:  movd    %xmm6, %ebp
    mov     %eax, MAILBOX_BIRTH_RESULT(%ebp)
    mov     STEP_ID(%esi), %ebx
    mov     $NR_EXIT, %eax
    int     $0x80
    ud2
END asc_trusted_birth
