//! What a network's output says about the clean sample: once, for every solver.

use candle_core::{DType, Tensor};
use sd_config::{PredictionType, SchedulerFile};

use crate::{Error, NoiseLevel, Result, tensor::combine};

/// Turns model outputs into clean samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Predictor {
    kind: PredictionType,
    limit: Limit,
}

/// How predicted clean samples are kept in range. None of these suits latents; pixel models use
/// them.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Limit {
    None,
    /// Clamped to plus and minus this.
    Range(f64),
    /// Clamped to a quantile of the sample's magnitudes, which is then brought to 1 (Saharia 2022,
    /// section 2.3).
    Quantile {
        ratio: f64,
        max: f64,
    },
}

/// Weights of the sample and of the model output.
pub(crate) struct Linear {
    pub(crate) sample: f64,
    pub(crate) output: f64,
}

impl Predictor {
    /// The predictor of a class that has neither `clip_sample` nor `thresholding`.
    pub(crate) fn unlimited(file: &SchedulerFile) -> Self {
        Self {
            kind: file.prediction_type.unwrap_or(PredictionType::Epsilon),
            limit: Limit::None,
        }
    }

    /// The predictor of a class that has `thresholding`, and `clip_sample` with this default unless
    /// it is `None`.
    pub(crate) fn limited(
        scheduler: &'static str,
        file: &SchedulerFile,
        clip: Option<bool>,
    ) -> Result<Self> {
        let invalid = |key, value: f64, expected| Error::config(scheduler, key, value, expected);
        let limit = if file.thresholding.unwrap_or(false) {
            let ratio = file.dynamic_thresholding_ratio.unwrap_or(0.995);
            let max = file.sample_max_value.unwrap_or(1.0);
            if !(0.0..=1.0).contains(&ratio) {
                return Err(invalid("dynamic_thresholding_ratio", ratio, "0 to 1"));
            }
            if !(max >= 1.0 && max.is_finite()) {
                return Err(invalid("sample_max_value", max, "a number of at least 1"));
            }
            Limit::Quantile { ratio, max }
        } else {
            Self::clip(scheduler, file, clip)?
        };
        Ok(Self {
            limit,
            ..Self::unlimited(file)
        })
    }

    /// The predictor of a class that has `clip_sample`, false by default, but no `thresholding`.
    pub(crate) fn clipped(scheduler: &'static str, file: &SchedulerFile) -> Result<Self> {
        Ok(Self {
            limit: Self::clip(scheduler, file, Some(false))?,
            ..Self::unlimited(file)
        })
    }

    fn clip(scheduler: &'static str, file: &SchedulerFile, default: Option<bool>) -> Result<Limit> {
        if !default.is_some_and(|default| file.clip_sample.unwrap_or(default)) {
            return Ok(Limit::None);
        }
        let range = file.clip_sample_range.unwrap_or(1.0);
        if !(range > 0.0 && range.is_finite()) {
            return Err(Error::config(
                scheduler,
                "clip_sample_range",
                range,
                "a positive number",
            ));
        }
        Ok(Limit::Range(range))
    }

    /// Refuses the prediction types that a class of the reference does not know.
    pub(crate) fn without_sample(self, scheduler: &'static str) -> Result<Self> {
        match self.kind {
            PredictionType::Sample => Err(Error::config(
                scheduler,
                "prediction_type",
                "sample",
                "epsilon or v_prediction",
            )),
            PredictionType::Epsilon | PredictionType::VPrediction => Ok(self),
        }
    }

    /// Refuses levels where the model output says nothing about what is wanted: noise predicted
    /// from pure noise.
    pub(crate) fn check(&self, scheduler: &'static str, levels: &[NoiseLevel]) -> Result<()> {
        let (calls, _end) = levels.split_at(levels.len() - 1);
        if self.kind == PredictionType::Epsilon && calls.iter().any(|level| level.alpha == 0.0) {
            return Err(Error::config(
                scheduler,
                "prediction_type",
                "epsilon",
                "v_prediction or sample, as a step starts without any signal",
            ));
        }
        Ok(())
    }

    /// Whether clean samples are not always what the model says.
    pub(crate) fn is_limited(&self) -> bool {
        self.limit != Limit::None
    }

    /// The clean sample that `output` predicts, when the network saw a sample at `level` but the
    /// sample has since been brought to `higher` by more noise.
    ///
    /// The reference takes the higher level for what noise is taken out, but not for what a
    /// velocity means.
    pub(crate) fn denoised_after_churn(
        &self,
        level: &NoiseLevel,
        higher: &NoiseLevel,
        sample: &Tensor,
        output: &Tensor,
    ) -> Result<Tensor> {
        match self.kind {
            PredictionType::VPrediction => {
                let Linear {
                    sample: of_sample,
                    output: of_output,
                } = self.clean(level);
                Ok(combine(&[
                    (of_sample * level.alpha / higher.alpha, sample),
                    (of_output, output),
                ])?)
            }
            PredictionType::Epsilon | PredictionType::Sample => {
                self.denoised(higher, sample, output)
            }
        }
    }

    /// The clean sample, before any limit: `x0 = (x - sigma e) / alpha`, or `alpha x - sigma v`
    /// (Salimans 2022).
    fn clean(&self, level: &NoiseLevel) -> Linear {
        let NoiseLevel { alpha, sigma, .. } = *level;
        match self.kind {
            PredictionType::Epsilon => Linear {
                sample: 1.0 / alpha,
                output: -sigma / alpha,
            },
            PredictionType::VPrediction => Linear {
                sample: alpha,
                output: -sigma,
            },
            PredictionType::Sample => Linear {
                sample: 0.0,
                output: 1.0,
            },
        }
    }

    /// The noise: the model's, whatever limit there is on the clean sample.
    pub(crate) fn noise(&self, level: &NoiseLevel) -> Linear {
        let NoiseLevel { alpha, sigma, .. } = *level;
        match self.kind {
            PredictionType::Epsilon => Linear {
                sample: 0.0,
                output: 1.0,
            },
            PredictionType::VPrediction => Linear {
                sample: sigma,
                output: alpha,
            },
            PredictionType::Sample => Linear {
                sample: 1.0 / sigma,
                output: -alpha / sigma,
            },
        }
    }

    /// The clean sample that `output` predicts from `sample` at `level`; f32, their shape.
    pub(crate) fn denoised(
        &self,
        level: &NoiseLevel,
        sample: &Tensor,
        output: &Tensor,
    ) -> Result<Tensor> {
        let Linear {
            sample: of_sample,
            output: of_output,
        } = self.clean(level);
        let clean = combine(&[(of_sample, sample), (of_output, output)])?;
        match self.limit {
            Limit::None => Ok(clean),
            Limit::Range(range) => Ok(clean.clamp(-range, range)?),
            Limit::Quantile { ratio, max } => threshold(&clean, ratio, max),
        }
    }
}

/// Dynamic thresholding, for each sample of the batch.
fn threshold(clean: &Tensor, ratio: f64, max: f64) -> Result<Tensor> {
    let mut samples = Vec::with_capacity(clean.dim(0)?);
    for index in 0..clean.dim(0)? {
        let sample = clean.narrow(0, index, 1)?;
        let mut magnitudes: Vec<f32> = sample
            .abs()?
            .flatten_all()?
            .to_dtype(DType::F32)?
            .to_vec1()?;
        let limit = f64::from(quantile(&mut magnitudes, ratio)).clamp(1.0, max);
        samples.push(sample.clamp(-limit, limit)?.affine(1.0 / limit, 0.0)?);
    }
    Ok(Tensor::cat(&samples, 0)?)
}

/// `torch.quantile` with linear interpolation; 1 for no values.
fn quantile(values: &mut [f32], ratio: f64) -> f32 {
    values.sort_unstable_by(f32::total_cmp);
    let rank = ratio as f32 * values.len().saturating_sub(1) as f32;
    let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
    match (values.get(low), values.get(high)) {
        (Some(low), Some(high)) => (high - low).mul_add(rank.fract(), *low),
        _ => 1.0,
    }
}
