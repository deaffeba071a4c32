//! torch's CPU generator: the same seed gives the same noise as
//! `torch.Generator("cpu").manual_seed(seed)`.

use std::f32::consts::TAU;

use crate::{
    Error, Result,
    cephes::{ln, sin_cos},
};

/// Words of the Mersenne Twister's state.
const WORDS: usize = 624;
/// How far apart the twisted words are.
const SHIFT: usize = 397;
/// torch makes normals in blocks of this many, and one at a time for shorter tensors.
const BLOCK: usize = 16;
/// State words, position, and whether and which normal is cached.
const STATE_BYTES: usize = WORDS * 4 + 4 + 1 + 8;

/// A Mersenne Twister (MT19937; Matsumoto and Nishimura 1998) with the normal distribution of
/// torch's `randn`.
#[derive(Debug, Clone, PartialEq)]
pub struct TorchGenerator {
    words: Box<[u32; WORDS]>,
    /// Words used of the current state; all of them means that it must be twisted first.
    used: usize,
    /// The second value of a pair made for a short tensor, kept for the next one.
    cached_normal: Option<f64>,
}

impl TorchGenerator {
    /// The generator that `manual_seed(seed)` gives. As in torch, only the low 32 bits of the seed
    /// matter.
    pub fn new(seed: u64) -> Self {
        let mut words = Box::new([0; WORDS]);
        words[0] = seed as u32;
        for i in 1..WORDS {
            let previous = words[i - 1];
            words[i] = (previous ^ (previous >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i as u32);
        }
        Self {
            words,
            used: WORDS,
            cached_normal: None,
        }
    }

    /// The values of `torch.randn(count, generator=self)`, f32, to the last bit of what torch gives
    /// on x86 processors with AVX2. On others, torch itself differs by up to 2 units in the last
    /// place.
    pub fn randn_f32(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCK {
            return (0..count).map(|_| self.normal_f64() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        for block in values.chunks_exact_mut(BLOCK) {
            box_muller(block);
        }
        // torch draws again for the last whole block, overlapping the one before.
        if !count.is_multiple_of(BLOCK) {
            let block = &mut values[count - BLOCK..];
            block.fill_with(|| self.uniform_f32());
            box_muller(block);
        }
        values
    }

    /// The whole state, [`from_bytes`](Self::from_bytes) continues from it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(STATE_BYTES);
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend((self.used as u32).to_le_bytes());
        bytes.push(u8::from(self.cached_normal.is_some()));
        bytes.extend(self.cached_normal.unwrap_or(0.0).to_le_bytes());
        bytes
    }

    /// The generator that wrote `bytes`.
    ///
    /// # Errors
    /// When `bytes` are not a generator's state.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let error = |what: String, expected: String| Error::Generator { what, expected };
        let (words, rest) = bytes.as_chunks::<4>();
        if bytes.len() != STATE_BYTES || rest.len() != 1 {
            return Err(error(
                format!("{} bytes", bytes.len()),
                format!("{STATE_BYTES} bytes"),
            ));
        }
        let mut state = Box::new([0; WORDS]);
        for (word, bytes) in state.iter_mut().zip(words) {
            *word = u32::from_le_bytes(*bytes);
        }
        let used = u32::from_le_bytes(words[WORDS]) as usize;
        if used > WORDS {
            return Err(error(
                format!("position {used}"),
                format!("at most {WORDS}"),
            ));
        }
        let cached_normal = match bytes[WORDS * 4 + 4] {
            0 => None,
            1 => bytes.last_chunk().map(|bytes| f64::from_le_bytes(*bytes)),
            flag => return Err(error(format!("flag {flag}"), "0 or 1".into())),
        };
        Ok(Self {
            words: state,
            used,
            cached_normal,
        })
    }

    /// The next 32 random bits.
    fn next_u32(&mut self) -> u32 {
        if self.used == WORDS {
            self.twist();
        }
        let mut word = self.words[self.used];
        self.used += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn twist(&mut self) {
        for i in 0..WORDS {
            let joined =
                (self.words[i] & 0x8000_0000) | (self.words[(i + 1) % WORDS] & 0x7fff_ffff);
            let twisted = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.words[i] = self.words[(i + SHIFT) % WORDS] ^ (joined >> 1) ^ twisted;
        }
        self.used = 0;
    }

    /// Uniform in [0, 1), 24 bits.
    fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    /// Uniform in [0, 1), 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        let bits = u64::from(self.next_u32()) << 32 | u64::from(self.next_u32());
        (bits & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }

    /// The path of short tensors: f64, in pairs, of which the second one waits for the next call.
    fn normal_f64(&mut self) -> f64 {
        if let Some(normal) = self.cached_normal.take() {
            return normal;
        }
        let angle = std::f64::consts::TAU * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.cached_normal = Some(radius * angle.sin());
        radius * angle.cos()
    }
}

/// 16 uniform values to 16 normal ones, in place, the first half with the second (Box and Muller
/// 1958).
fn box_muller(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(BLOCK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(TAU * *b);
        (*a, *b) = (radius * cos, radius * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twister_is_mt19937() {
        // The 10000th number of the standard generator, as C++ requires of std::mt19937.
        let mut generator = TorchGenerator::new(5489);
        let last = (0..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn a_saved_state_continues() {
        let mut generator = TorchGenerator::new(42);
        generator.randn_f32(5);
        generator.randn_f32(1000);
        let mut restored = TorchGenerator::from_bytes(&generator.to_bytes()).unwrap();
        assert_eq!(generator, restored);
        for count in [3, 17, 700] {
            assert_eq!(generator.randn_f32(count), restored.randn_f32(count));
        }
    }

    #[test]
    fn damaged_states_are_refused() {
        let bytes = TorchGenerator::new(0).to_bytes();
        assert!(TorchGenerator::from_bytes(&bytes[1..]).is_err());
        assert!(TorchGenerator::from_bytes(&[]).is_err());
        let mut far = bytes.clone();
        far[WORDS * 4 + 1] = 3;
        assert!(TorchGenerator::from_bytes(&far).is_err());
        let mut flag = bytes;
        flag[WORDS * 4 + 4] = 2;
        assert!(TorchGenerator::from_bytes(&flag).is_err());
    }
}
