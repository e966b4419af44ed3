# Every number and offset that the assembly uses, by name; src/arch/x86.rs fills them in from the Rust definitions.
.set WORD, {word}
.set EFLAGS_CLEAN, {eflags_clean}
.set EFLAGS_AC, {eflags_ac}
.set EVENT_SIZE, {event_size}
.set EXIT_DOORBELL, {exit_doorbell}
.set MAX_ERRNO, {max_errno}
.set EINTR, {eintr}
.set FUTEX_CMD_MASK, {futex_cmd_mask}
.set NR_FUTEX, {nr_futex}
.set NR_OPENAT2, {nr_openat2}
.set NR_READ, {nr_read}
.set NR_WRITE, {nr_write}
.set NR_CLONE, {nr_clone}
.set NR_EXIT, {nr_exit}
.set NR_SIGRETURN, {nr_sigreturn}
.set VAULT_LO, {vault_lo}
.set VAULT_LEN, {vault_len}
.set VAULT_FD_LO, {vault_fd_lo}
.set VAULT_FD_LEN, {vault_fd_len}
.set VAULT_SPIN, {vault_spin}
.set VAULT_ALARM, {vault_alarm}
.set VAULT_FUTEX_OPS, {vault_futex_ops}
.set VAULT_PATIENCE, {vault_patience}
.set VAULT_SECOND, {vault_second}
.set VAULT_TOKENS, {vault_tokens}
.set VAULT_MXCSR, {vault_mxcsr}
.set VAULT_ONE, {vault_one}
.set VAULT_TABLE, {vault_table}
.set TABLE_LEN, {table_len}
.set ROW_ALLOW, {row_allow}
.set ROW_SMALL, {row_small}
.set SMALL, {small}
.set ROW_FUTEX, {row_futex}
.set ROW_TOKEN, {row_token}
.set TOKENS, {tokens}
.set TOKEN_SHIFT, {token_shift}
.set TOKEN_VALID, {token_valid}
.set TOKEN_ROOT, {token_root}
.set TOKEN_REST, {token_rest}
.set TOKEN_PATH, {token_path}
.set TOKEN_HOW, {token_how}
.set HOW_SIZE, {how_size}
.set STEP_NR, {step_nr}
.set STEP_FLAGS, {step_flags}
.set STEP_ID, {step_id}
.set STEP_ARGS, {step_args}
.set STEP_EXPECT, {step_expect}
.set STEP_SIZE, {step_size}
.set STEP_CHECK, {step_check}
.set STEP_MUST, {step_must}
.set STEP_STOP, {step_stop}
.set STEP_SAVE, {step_save}
.set STEP_KEEP, {step_keep}
.set STEP_CLONE_T, {step_clone_t}
.set STEP_CLONE, {step_clone}
.set STEP_SERVE, {step_serve}
.set STEP_TELL, {step_tell}
.set STEP_AGAIN, {step_again}
.set STEP_BORE, {step_bore}
# A pair's verdict lies at a fixed distance below its mailbox, which T's base register points to.
.set VERDICT, {verdict}
.set VERDICT_ASK, VERDICT + {verdict_ask}
.set VERDICT_SEQ, VERDICT + {verdict_seq}
.set VERDICT_BORE, VERDICT + {verdict_bore}
.set VERDICT_DOORBELL_T, VERDICT + {verdict_doorbell_t}
.set VERDICT_DOORBELL_U, VERDICT + {verdict_doorbell_u}
.set VERDICT_SCRIPT, VERDICT + {verdict_script}
.set VERDICT_T, VERDICT + {verdict_t}
.set VERDICT_U, VERDICT + {verdict_u}
.set MAILBOX_ARGS, {mailbox_args}
.set MAILBOX_ASKS, {mailbox_asks}
.set MAILBOX_NR, {mailbox_nr}
.set MAILBOX_TURN, {mailbox_turn}
.set MAILBOX_U_ASLEEP, {mailbox_u_asleep}
.set MAILBOX_RESULT, MAILBOX_ARGS
.set MAILBOX_T_ASLEEP, {mailbox_t_asleep}
.set MAILBOX_SCRATCH, {mailbox_scratch}
.set MAILBOX_BIRTH_RESULT, {mailbox_birth_result}
.set CONTEXT_EBX, {context_ebx}
.set CONTEXT_ESI, {context_esi}
.set CONTEXT_EDI, {context_edi}
.set CONTEXT_EBP, {context_ebp}
.set FRAME_REGISTERS, {frame_registers}
.set FRAME_PC, {frame_pc}
.set CONTEXT_PC, {context_pc}
.set CONTEXT_SP, {context_sp}
