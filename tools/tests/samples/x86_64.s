.globl _start
_start: push %rbp; mov %rsp,%rbp; call middle; hlt
middle: push %rbp; mov %rsp,%rbp; call inner; hlt
inner: push %rbp; mov %rsp,%rbp
 movabs $0x1122334455667788,%r15
 movq %r15,%xmm5
 fld1
 mov $0x10,%eax
 movb $7,(%rax)
