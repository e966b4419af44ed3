# asc_capture(context, f, data) -> whatever f(data) returns, or 0 in the guest
#
# Saves what the caller's frame needs to be resumed and goes on to f as if f had been called. `enter` resumes the
# saved context in another task: there, asc_capture returns a second time, with 0.
#
#   in        4(%esp) context   8 f   12 data
#   clobbers  %eax, %ecx
FUNC asc_capture
    mov     1 * WORD(%esp), %eax
    mov     %ebx, CONTEXT_EBX(%eax)
    mov     %esi, CONTEXT_ESI(%eax)
    mov     %edi, CONTEXT_EDI(%eax)
    mov     %ebp, CONTEXT_EBP(%eax)
    mov     (%esp), %ecx
    mov     %ecx, CONTEXT_PC(%eax)
    lea     WORD(%esp), %ecx            # as it is after the return
    mov     %ecx, CONTEXT_SP(%eax)
    mov     2 * WORD(%esp), %eax
    mov     3 * WORD(%esp), %ecx
    mov     %ecx, 1 * WORD(%esp)        # the slots of arguments belong to the callee
    jmp     *%eax
END asc_capture
