# asc_trusted_birth, asc_script: how T and U come to life, and how T executes verdicts
#
# Part of T's code: position-independent, copied into the vault. A script is a list of system calls in a verdict, which
# only the supervisor can write. T enters at asc_trusted_birth, loses its stack pointer there, and goes on to serve; U
# enters at asc_script and leaves by its script's last call, a (rt_)sigreturn that sets every register and jumps to
# guest code. deep.S enters at asc_script_verdict with the broker's verdict.
#
#   parameters   %ebx vault   %ebp mailbox   %esi script   in a verdict: %xmm5 turn word
#   locals       %xmm7 vault, and in the next place the number of the last verdict   %xmm6 mailbox
#                %xmm3 next step   %xmm4 saved result (a call takes every general register)
#   temporaries  %eax %ebx %ecx %edx %esi %edi %ebp
#
# int $0x80 only: sysenter reads a word from the stack.
# Must never: touch the stack; store outside the mailbox; branch through a register or memory.
.macro STEP_ARG i:req, reg:req
    mov     STEP_ARGS + \i * WORD(%esi), \reg
    testl   $(1 << \i), STEP_FLAGS(%esi)
    cmovnz  %eax, \reg
.endm

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
LABEL asc_script_verdict
    movd    %esi, %xmm3
    cmpl    $STEP_BORE, STEP_NR(%esi)   # the pseudo steps are the highest numbers
    jae     asc_script_special
    movd    %xmm4, %eax
    STEP_ARG 0, %ebx
    STEP_ARG 1, %ecx
    STEP_ARG 2, %edx
    STEP_ARG 4, %edi
    STEP_ARG 5, %ebp
    testl   $(1 << 3), STEP_FLAGS(%esi)
    jnz     1f
    mov     STEP_ARGS + 3 * WORD(%esi), %eax
1:  xchg    %eax, %esi
    mov     STEP_NR(%eax), %eax
    int     $0x80
    movd    %xmm3, %esi
    mov     STEP_FLAGS(%esi), %ecx
    test    $STEP_CLONE, %ecx
    jz      2f
    test    %eax, %eax
    jz      asc_script_child
2:  test    $STEP_SAVE, %ecx
    jz      3f
    movd    %eax, %xmm4
3:  movd    %xmm6, %ebp
    test    $STEP_KEEP, %ecx
    jz      4f
    mov     %eax, MAILBOX_RESULT(%ebp)
4:  test    $STEP_STOP | STEP_TELL | STEP_MUST, %ecx
    jz      5f
    cmp     $-MAX_ERRNO, %eax
    jae     asc_script_error
5:  test    $STEP_CHECK, %ecx
    jz      6f
    cmp     STEP_EXPECT(%esi), %eax
    jne     asc_script_fail
6:  add     $STEP_SIZE, %esi
    jmp     asc_script_verdict

LABEL asc_script_error
    test    $STEP_STOP, %ecx
    jnz     asc_direct_reply
    test    $STEP_TELL, %ecx
    jnz     asc_deep_ask
LABEL asc_script_fail
    test    $STEP_AGAIN, %ecx
    jnz     7f
    mov     %eax, MAILBOX_BIRTH_RESULT(%ebp)
    mov     STEP_ID(%esi), %ebx
    mov     $NR_EXIT, %eax
    int     $0x80
    ud2
7:  sub     $STEP_SIZE, %esi            # the step before
    jmp     asc_script_verdict

LABEL asc_script_child                  # the new task: all it keeps of its creator is the vault
    movd    %xmm7, %ebx
    mov     STEP_EXPECT(%esi), %ebp
    lea     VERDICT_T(%ebp), %esi
    test    $STEP_CLONE_T, %ecx
    jnz     asc_trusted_birth
    lea     VERDICT_U(%ebp), %esi
    jmp     asc_script

LABEL asc_script_special
    je      asc_deep_bore
    cmpl    $STEP_SERVE, STEP_NR(%esi)
    je      asc_direct
    mov     STEP_FLAGS(%esi), %ecx      # STEP_REPLY
    test    $STEP_KEEP, %ecx
    jnz     asc_direct_replied
    mov     STEP_ARGS(%esi), %eax
    test    $1, %ecx
    jz      asc_direct_reply
    movd    %xmm4, %eax
    jmp     asc_direct_reply
END asc_trusted_birth
