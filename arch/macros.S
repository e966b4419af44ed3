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
