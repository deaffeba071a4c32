//! Products on the tile registers of Intel's AMX (Intel 64 and IA-32 Architectures Software Developer's Manual, chapter 18).
//!
//! The instructions are written out, as the compiler's own names for them are not stable.
#![allow(
    unsafe_code,
    reason = "assembly, on pointers, of instructions that not every machine has"
)]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

use super::line::Line;
use super::product::{GROUP, Left, Sums};

/// Whether this machine has the tiles and lets this process use them.
pub(super) fn available() -> bool {
    /// Bits of CPUID's leaf 7 in EDX.
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    /// Linux gives a process the tiles' state when it asks for it (`Documentation/arch/x86/xstate.rst`).
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    #[allow(unused_unsafe, reason = "older compilers call these unsafe")]
    // SAFETY: every x86-64 processor has the instruction.
    let (leaves, edx) = unsafe { (__cpuid(0).eax, __cpuid_count(7, 0).edx) };
    if leaves < 7 {
        return false;
    }
    if edx & AMX_BF16 == 0 || edx & AMX_TILE == 0 {
        return false;
    }
    // SAFETY: a request by number; it fails where the system knows no tiles.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        )
    };
    answer == 0
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of 16 rows of 64 bytes, which is all there is.
static CONFIG: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// # Safety
/// `left`, `right` and `out` are as large as `product` says, with at least one step and one row; the tiles are available.
pub(super) unsafe fn product(left: Left, right: &[Line], out: &mut [Sums]) {
    let strips = out.len() / (left.groups * GROUP);
    // Four tiles of sums, 32 rows and 32 columns; in each step two tiles of the left and two of the right.
    //
    // SAFETY: the caller's. The block leaves nothing in the tiles, and keeps the stack as it is.
    unsafe {
        asm!(
            "ldtilecfg [{a}]",
            // A strip of the right matrix.
            "2:",
            "mov {row}, {rows}",
            "mov {group}, {groups}",
            // A group of rows.
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "mov {b}, {right}",
            "xor {step:e}, {step:e}",
            "4:",
            "mov {a}, [{offsets} + {step} * 8]",
            "shl {a}, 6",
            "add {a}, {row}",
            "tileloadd tmm6, [{b} + {stride}]",
            "tileloadd tmm4, [{a} + {stride}]",
            "tileloadd tmm7, [{b} + {stride} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a} + {stride} + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {b}, 2048",
            "inc {step}",
            "cmp {step}, {steps}",
            "jb 4b",
            "lea {a}, [{stride} + {stride}]",
            "tilestored [{out} + {a}], tmm0",
            "tilestored [{out} + {a} + 64], tmm1",
            "tilestored [{out} + {a} + 2048], tmm2",
            "tilestored [{out} + {a} + 2112], tmm3",
            "add {out}, 4096",
            "add {row}, 2048",
            "dec {group}",
            "jnz 3b",
            "mov {right}, {b}",
            "dec {strips}",
            "jnz 2b",
            "tilerelease",
            rows = in(reg) left.lines.as_ptr(),
            offsets = in(reg) left.steps.as_ptr(),
            steps = in(reg) left.steps.len(),
            groups = in(reg) left.groups,
            stride = in(reg) size_of::<Line>(),
            right = inout(reg) right.as_ptr() => _,
            out = inout(reg) out.as_mut_ptr() => _,
            strips = inout(reg) strips => _,
            row = out(reg) _,
            group = out(reg) _,
            a = inout(reg) &CONFIG => _,
            b = out(reg) _,
            step = out(reg) _,
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}
