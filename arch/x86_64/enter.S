# asc_capture(context, f, data) -> whatever f(data) returns, or 0 in the guest
#
# Saves what the caller's frame needs to be resumed and goes on to f as if f had been called. `enter` resumes the
# saved context in another task: there, asc_capture returns a second time, with 0.
#
#   in        %rdi context   %rsi f   %rdx data
#   clobbers  %rax, %rdi
FUNC asc_capture
    mov     %rbx, CONTEXT_RBX(%rdi)
    mov     %rbp, CONTEXT_RBP(%rdi)
    mov     %r12, CONTEXT_R12(%rdi)
    mov     %r13, CONTEXT_R13(%rdi)
    mov     %r14, CONTEXT_R14(%rdi)
    mov     %r15, CONTEXT_R15(%rdi)
    mov     (%rsp), %rax
    mov     %rax, CONTEXT_PC(%rdi)
    lea     WORD(%rsp), %rax            # as it is after the return
    mov     %rax, CONTEXT_SP(%rdi)
    mov     %rdx, %rdi
    jmp     *%rsi
END asc_capture
