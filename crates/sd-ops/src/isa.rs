//! The widest vectors of this machine, found when the program runs: a plain build has them too.

#![allow(
    unsafe_code,
    reason = "code for instructions that not every machine has may be called only where they are known to exist"
)]

/// A set of vector instructions that kernels are compiled for.
///
/// Kernels are plain loops without reordered sums or fused products, so that all sets give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// What every machine of the target has.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The sets that this machine has, the best one last.
    pub(crate) fn available() -> impl DoubleEndedIterator<Item = Self> {
        [
            Some(Self::Portable),
            #[cfg(target_arch = "x86_64")]
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
                .then_some(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            (is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl"))
            .then_some(Self::Avx512),
        ]
        .into_iter()
        .flatten()
    }

    /// The best set that this machine has.
    #[inline]
    pub(crate) fn best() -> Self {
        Self::available().next_back().unwrap_or(Self::Portable)
    }

    /// Runs `kernel`, an `#[inline(always)]` closure of functions that are too, compiled for this set.
    #[inline(always)]
    pub(crate) fn run<R>(self, kernel: impl FnOnce() -> R) -> R {
        match self {
            Self::Portable => kernel(),
            // SAFETY: this set is made in `available` alone, where the machine has it.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512(kernel) },
        }
    }
}

/// The value of an expression, compiled for the best set that this machine has. Functions in it must be `#[inline(always)]`: others
/// stay compiled for all machines, and calls that pass vectors are slow.
macro_rules! vectorized {
    ($kernel:expr) => {
        $crate::isa::Isa::best().run(
            #[inline(always)]
            || $kernel,
        )
    };
}
pub(crate) use vectorized;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<R>(kernel: impl FnOnce() -> R) -> R {
    kernel()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<R>(kernel: impl FnOnce() -> R) -> R {
    kernel()
}

/// Asserts that `kernel` gives the same bits for every set that this machine has.
#[cfg(test)]
#[inline(always)]
pub(crate) fn assert_same_bits(kernel: impl Fn() -> Vec<f32>) {
    let bits = |isa: Isa| -> Vec<u32> { isa.run(&kernel).into_iter().map(f32::to_bits).collect() };
    let portable = bits(Isa::Portable);
    for isa in Isa::available() {
        assert!(bits(isa) == portable, "{isa:?} differs from plain code");
    }
}
