//! UNet calls that may fail: what one run does wrong must not touch the others.

use std::{
    any::Any,
    error::Error as _,
    panic::{AssertUnwindSafe, catch_unwind},
};

use sd_pipeline::{Error, Pipeline, Progress, Run};

use super::shared::failed;
use crate::{jobs::ErrorCode, store::Outcome};

/// Advances the runs by one UNet call together, or one by one if that fails. Entry i of the result is what became of
/// run i: the progress, None if it was done before.
pub(super) fn advance(
    pipeline: &Pipeline,
    runs: &mut [&mut Run],
) -> Vec<Result<Option<Progress>, Outcome>> {
    let together = guarded(|| {
        #[cfg(test)]
        tests::panic_on_request(runs);
        pipeline.advance_many(runs)
    });
    match together {
        Ok(progress) => progress.into_iter().map(Ok).collect(),
        Err(failure) if runs.len() == 1 => vec![Err(failure)],
        // A run that had advanced before another failed advances once more, which is no harm.
        Err(_) => runs
            .iter_mut()
            .map(|run| {
                guarded(|| {
                    #[cfg(test)]
                    tests::panic_on_request(&[run]);
                    run.advance(pipeline)
                })
            })
            .collect(),
    }
}

/// Does one job's work. An error, or a panic, is that job's end.
pub(super) fn guarded<T>(work: impl FnOnce() -> sd_pipeline::Result<T>) -> Result<T, Outcome> {
    // A run that was in the middle of something is dropped, or refuses to go on.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| failure(&error)),
        Err(panic) => {
            let message = panic_message(&*panic);
            tracing::error!("a job panicked: {message}");
            Err(failed(ErrorCode::Internal, format!("panicked: {message}")))
        }
    }
}

fn failure(error: &Error) -> Outcome {
    let message = report(error);
    tracing::warn!("the pipeline failed: {message}");
    // CUDA's and Metal's words for it; on the CPU the process ends.
    if ["out of memory", "OUT_OF_MEMORY", "OutOfMemory"]
        .iter()
        .any(|words| message.contains(words))
    {
        return failed(ErrorCode::OutOfMemory, "the device has too little memory");
    }
    match error {
        Error::Memory { .. } => failed(ErrorCode::OutOfMemory, message),
        // They may name files of this machine.
        Error::Model(_) => failed(
            ErrorCode::GenerationFailed,
            "the model failed; the log says why",
        ),
        _ => failed(ErrorCode::GenerationFailed, message),
    }
}

/// The error and its causes.
fn report(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
pub(super) mod tests {
    use super::Run;

    /// The prompt of a job that panics at its second step.
    pub(crate) const PANICS: &str = "panic";

    /// The prompt of a job whose runs panic when they are to be brought to disk.
    pub(crate) const UNSAVED: &str = "unsaved";

    pub(crate) fn panic_on_snapshot(run: &Run) {
        assert!(run.job().prompt != UNSAVED, "on request");
    }

    /// Stands for a defect that only some jobs meet.
    pub(super) fn panic_on_request(runs: &[&mut Run]) {
        for run in runs {
            assert!(
                run.job().prompt != PANICS || run.denoised().is_none(),
                "on request"
            );
        }
    }
}
