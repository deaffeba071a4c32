//! What is shown on standard error while the work runs. Nothing is when it is not a terminal.

use std::{
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use sd_models::ProgressFn;

/// A stage of unknown length: a spinner, and a bar for each download on the way. Vanishes when dropped.
pub(crate) struct Stage {
    bars: MultiProgress,
    spinner: ProgressBar,
}

impl Stage {
    pub(crate) fn new(message: &'static str) -> Self {
        let bars = MultiProgress::new();
        let spinner = bars.add(ProgressBar::new_spinner().with_message(message));
        spinner.enable_steady_tick(Duration::from_millis(100));
        Self { bars, spinner }
    }

    /// Shows the download of one file at a time.
    pub(crate) fn downloads(&self) -> ProgressFn {
        let bars = self.bars.clone();
        let current = Mutex::new((String::new(), ProgressBar::hidden()));
        Arc::new(move |progress| {
            // A panic elsewhere cannot leave a bar half made.
            let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
            if current.0 != progress.file {
                current.1.finish_and_clear();
                let bar = ProgressBar::new(progress.total).with_message(progress.file.clone());
                let style = style(
                    "{bar:32} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left, {wide_msg}",
                );
                *current = (progress.file.clone(), bars.add(bar.with_style(style)));
            }
            current.1.set_position(progress.downloaded);
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.spinner.finish_and_clear();
        // Lines that stay behind are only untidy.
        let _ = self.bars.clear();
    }
}

/// A bar over denoising steps, with seconds a step and the time left.
pub(crate) fn steps(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64).with_style(style(
        "{bar:32} step {pos}/{len}, {pace} s/step, {eta} left",
    ));
    // The first step may take minutes: show the empty bar meanwhile.
    bar.tick();
    bar
}

fn style(template: &str) -> ProgressStyle {
    let pace = |state: &ProgressState, text: &mut dyn Write| {
        // A failed write only spoils the bar, and cannot be reported from here.
        let _ = match state.pos() {
            0 => text.write_str("-"),
            done => write!(text, "{:.2}", state.elapsed().as_secs_f64() / done as f64),
        };
    };
    ProgressStyle::with_template(template)
        .expect("the templates are this file's")
        .with_key("pace", pace)
}
