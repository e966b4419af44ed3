# FUNC/TRUSTED_FUNC name … END name: section, alignment, visibility, type, size and CFI of a routine.
.macro FUNC name:req
    .pushsection .text.\name, "ax", @progbits
    .globl  \name
    .hidden \name
    .type   \name, @function
    .p2align 4
\name:
    .cfi_startproc
.endm

# T's code: one section, which linker/*.ld place and measure, and which the supervisor copies into the vault.
.macro TRUSTED_FUNC name:req
    .pushsection ascetic_trusted, "ax", @progbits
    .globl  \name
    .hidden \name
    .type   \name, @function
\name:
    .cfi_startproc
.endm

# The gates: one section, so that they are one range.
.macro GATE_FUNC name:req
    .pushsection ascetic_gate, "ax", @progbits
    .globl  \name
    .hidden \name
    .type   \name, @function
\name:
    .cfi_startproc
.endm

# A gate to which handlers return. Debuggers look just before it for who called the handler. The frame is \at
# bytes from where the stack pointer points.
.macro RESTORER name:req, at=0
    .pushsection ascetic_gate, "ax", @progbits
    .globl  \name
    .hidden \name
    .type   \name, @function
    .cfi_startproc
    .cfi_signal_frame
    RESTORED \at
    nop
\name:
.endm

# CFI: the register with DWARF's number \reg is saved \at bytes from where the stack pointer, whose number is \sp, points.
.macro RESTORES reg:req, sp:req, at:req
    .cfi_escape 0x10, \reg, 3, 0x70 + \sp, (\at) & 0x7f | 0x80, (\at) >> 7 # DW_CFA_expression, DW_OP_breg
.endm

# CFI: the stack pointer is what is saved there.
.macro RESTORES_SP sp:req, at:req
    .cfi_escape 0x0f, 4, 0x70 + \sp, (\at) & 0x7f | 0x80, (\at) >> 7, 0x06 # DW_CFA_def_cfa_expression, DW_OP_deref
.endm

.macro LABEL name:req
    .globl  \name
    .hidden \name
\name:
.endm

.macro END name:req
    .cfi_endproc
    .size   \name, . - \name
    .popsection
.endm
