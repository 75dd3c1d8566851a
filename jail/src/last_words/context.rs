//! The registers of an interrupted thread, for each architecture.

/// The state of the thread that a handler interrupted.
pub(super) struct Context<'a>(&'a mut libc::ucontext_t);

impl<'a> Context<'a> {
    pub(super) fn new(context: &'a mut libc::ucontext_t) -> Self {
        Self(context)
    }

    /// True if the thread was on its alternate signal stack, so in another handler.
    pub(super) fn was_on_signal_stack(&self) -> bool {
        let stack = &self.0.uc_stack;
        let start = stack.ss_sp.addr() as u64;
        let end = start.saturating_add(stack.ss_size as u64);
        (start..end).contains(&self.stack_pointer())
    }

    /// Sets the thread back in front of the instruction (`len` bytes) by which it entered the kernel. The kernel has restored all
    /// registers that the call needs.
    pub(super) fn repeat_syscall(&mut self, len: u64) {
        let address = self.instruction_pointer().wrapping_sub(len);
        self.set_instruction_pointer(address);
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "libc has the registers as signed numbers"
)]
impl Context<'_> {
    fn register(&self, index: libc::c_int) -> u64 {
        self.0.uc_mcontext.gregs[index as usize] as u64
    }

    fn stack_pointer(&self) -> u64 {
        self.register(libc::REG_RSP)
    }

    fn instruction_pointer(&self) -> u64 {
        self.register(libc::REG_RIP)
    }

    fn set_instruction_pointer(&mut self, address: u64) {
        self.0.uc_mcontext.gregs[libc::REG_RIP as usize] = address as i64;
    }

    /// The arguments of the call that the thread made.
    pub(super) fn arguments(&self) -> [u64; 6] {
        [
            libc::REG_RDI,
            libc::REG_RSI,
            libc::REG_RDX,
            libc::REG_R10,
            libc::REG_R8,
            libc::REG_R9,
        ]
        .map(|index| self.register(index))
    }
}

#[cfg(target_arch = "aarch64")]
impl Context<'_> {
    fn stack_pointer(&self) -> u64 {
        self.0.uc_mcontext.sp
    }

    fn instruction_pointer(&self) -> u64 {
        self.0.uc_mcontext.pc
    }

    fn set_instruction_pointer(&mut self, address: u64) {
        self.0.uc_mcontext.pc = address;
    }

    /// The arguments of the call that the thread made.
    pub(super) fn arguments(&self) -> [u64; 6] {
        [0, 1, 2, 3, 4, 5].map(|index| self.0.uc_mcontext.regs[index])
    }
}

/// Registers as in `struct user_regs_struct`: 0 is the program counter, 2 the stack pointer, 10 to 15 are arguments.
#[cfg(target_arch = "riscv64")]
impl Context<'_> {
    fn stack_pointer(&self) -> u64 {
        self.0.uc_mcontext.__gregs[2]
    }

    fn instruction_pointer(&self) -> u64 {
        self.0.uc_mcontext.__gregs[0]
    }

    fn set_instruction_pointer(&mut self, address: u64) {
        self.0.uc_mcontext.__gregs[0] = address;
    }

    /// The arguments of the call that the thread made.
    pub(super) fn arguments(&self) -> [u64; 6] {
        [10, 11, 12, 13, 14, 15].map(|index| self.0.uc_mcontext.__gregs[index])
    }
}
