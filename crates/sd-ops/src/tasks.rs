//! Work shared out among the threads.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

/// Runs all `tasks`, each thread taking one when it is done with the last, with buffers of its own.
pub(crate) fn each<T: Send, B: Default>(tasks: Vec<T>, run: impl Fn(&mut B, T) + Sync) {
    let threads = rayon::current_num_threads().min(tasks.len());
    let tasks = Mutex::new(tasks.into_iter());
    // A panic ends in the caller's thread, whatever the others still take.
    let next = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
    (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
        let mut buffers = B::default();
        while let Some(task) = next() {
            run(&mut buffers, task);
        }
    });
}
