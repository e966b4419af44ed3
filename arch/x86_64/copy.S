# Copies of guest memory that may not be there. A fault at the instruction that is named goes on at the label behind:
# the handler of SIGSEGV and SIGBUS sees to that (src/fault/mod.rs).

# asc_copy(to, from, n) -> bytes that were not copied
#
#   in        %rdi to   %rsi from   %rdx n
#   clobbers  %rax %rcx %rsi %rdi
FUNC asc_copy
    mov     %rdx, %rcx
LABEL asc_copy_at
    rep movsb
LABEL asc_copy_fault
    mov     %rcx, %rax
    ret
END asc_copy

# asc_copy_string(to, from, n) -> bytes copied, up to and with the first that is 0; -1 after a fault
#
#   in        %rdi to   %rsi from   %rdx n
#   clobbers  %rax %rcx %rsi %rdi
FUNC asc_copy_string
    mov     %rdx, %rcx
1:  test    %rcx, %rcx
    jz      2f
LABEL asc_copy_string_at
    mov     (%rsi), %al
    mov     %al, (%rdi)
    inc     %rsi
    inc     %rdi
    dec     %rcx
    test    %al, %al
    jnz     1b
2:  mov     %rdx, %rax
    sub     %rcx, %rax
    ret
LABEL asc_copy_string_fault
    mov     $-1, %rax
    ret
END asc_copy_string
