# Copies of guest memory that may not be there. A fault at the instruction that is named goes on at the label behind:
# the handler of SIGSEGV and SIGBUS sees to that (src/fault/mod.rs).

# asc_copy(to, from, n) -> bytes that were not copied
#
#   in        4(%esp) to   8(%esp) from   12(%esp) n
#   clobbers  %eax %ecx %edx
FUNC asc_copy
    push    %esi
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %esi, 0
    push    %edi
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %edi, 0
    mov     3 * WORD(%esp), %edi
    mov     4 * WORD(%esp), %esi
    mov     5 * WORD(%esp), %ecx
LABEL asc_copy_at
    rep movsb
LABEL asc_copy_fault
    mov     %ecx, %eax
    pop     %edi
    .cfi_adjust_cfa_offset -4
    .cfi_restore %edi
    pop     %esi
    .cfi_adjust_cfa_offset -4
    .cfi_restore %esi
    ret
END asc_copy

# asc_copy_string(to, from, n) -> bytes copied, up to and with the first that is 0; -1 after a fault
#
#   in        4(%esp) to   8(%esp) from   12(%esp) n
#   clobbers  %eax %ecx %edx
FUNC asc_copy_string
    push    %esi
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %esi, 0
    push    %edi
    .cfi_adjust_cfa_offset 4
    .cfi_rel_offset %edi, 0
    mov     3 * WORD(%esp), %edi
    mov     4 * WORD(%esp), %esi
    mov     5 * WORD(%esp), %ecx
1:  test    %ecx, %ecx
    jz      2f
LABEL asc_copy_string_at
    mov     (%esi), %al
    mov     %al, (%edi)
    inc     %esi
    inc     %edi
    dec     %ecx
    test    %al, %al
    jnz     1b
2:  mov     5 * WORD(%esp), %eax
    sub     %ecx, %eax
    jmp     3f
LABEL asc_copy_string_fault
    mov     $-1, %eax
3:  pop     %edi
    .cfi_adjust_cfa_offset -4
    .cfi_restore %edi
    pop     %esi
    .cfi_adjust_cfa_offset -4
    .cfi_restore %esi
    ret
END asc_copy_string
