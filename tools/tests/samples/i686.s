.globl _start
_start: push %ebp; mov %esp,%ebp; call middle; hlt
middle: push %ebp; mov %esp,%ebp; call inner; hlt
inner: push %ebp; mov %esp,%ebp
 mov $0x11223344,%esi
 movd %esi,%xmm5
 fld1
 mov $0x10,%eax
 movb $7,(%eax)
