//! The loaded models: as many as the budget allows, the least recently used go first.

use std::time::{Duration, Instant};

use sd_pipeline::{Pipeline, PipelineBuilder, Result};

use super::{ModelEntry, metrics};

/// A model stays for this many times the time its loading took, before one of equal right may push it out: at most a
/// fifth of the time goes into loading.
const STAY: u32 = 4;

pub(super) struct Models {
    entries: Vec<Entry>,
    /// Bytes of weights.
    budget: Option<u64>,
    /// When the model loaded last may be pushed out.
    stays_until: Option<Instant>,
}

struct Entry {
    name: String,
    builder: PipelineBuilder,
    loaded: Option<Loaded>,
}

struct Loaded {
    pipeline: Pipeline,
    bytes: u64,
    used: Instant,
}

impl Models {
    pub(super) fn new(entries: Vec<ModelEntry>, budget: Option<u64>) -> Self {
        let entries = entries
            .into_iter()
            .map(|ModelEntry { name, builder }| Entry {
                name,
                builder,
                loaded: None,
            });
        Self {
            entries: entries.collect(),
            budget,
            stays_until: None,
        }
    }

    pub(super) fn name(&self, model: usize) -> &str {
        &self.entries[model].name
    }

    pub(super) fn get(&self, model: usize) -> Option<&Pipeline> {
        let loaded = self.entries[model].loaded.as_ref()?;
        Some(&loaded.pipeline)
    }

    /// A loaded model, which is used from now on.
    pub(super) fn touch(&mut self, model: usize) -> Option<&Pipeline> {
        let loaded = self.entries[model].loaded.as_mut()?;
        loaded.used = Instant::now();
        Some(&loaded.pipeline)
    }

    /// Whether jobs of this model may go before others of equal right: while a switch would be wasteful, only those of
    /// the loaded models.
    pub(super) fn is_ready(&self, model: usize) -> bool {
        let stays = self.stays_until.is_some_and(|until| Instant::now() < until);
        self.budget.is_none() || !stays || self.entries[model].loaded.is_some()
    }

    /// Loads a model: seconds to minutes.
    pub(super) fn load(&mut self, model: usize) -> Result<()> {
        let before = metrics::resident_bytes();
        let start = Instant::now();
        let entry = &mut self.entries[model];
        let pipeline = entry.builder.clone().build()?;
        // Hashed now, as every picture and checkpoint needs it.
        pipeline.weights_sha256()?;
        let bytes = metrics::resident_bytes()
            .zip(before)
            .map_or(0, |(after, before)| after.saturating_sub(before));
        let used = Instant::now();
        entry.loaded = Some(Loaded {
            pipeline,
            bytes,
            used,
        });
        let took = used - start;
        self.stays_until = used.checked_add(took.max(Duration::from_millis(1)) * STAY);
        metrics::stage("load", took);
        metrics::models(self.loaded());
        tracing::info!(model = self.name(model), bytes, ?took, "model loaded");
        Ok(())
    }

    /// The model to unload for the budget's sake, `keep` excepted.
    pub(super) fn surplus(&self, keep: usize) -> Option<usize> {
        let budget = self.budget?;
        let loaded = || {
            let entries = self.entries.iter().enumerate();
            entries.filter_map(|(model, entry)| Some((model, entry.loaded.as_ref()?)))
        };
        let bytes: u64 = loaded().map(|(_, loaded)| loaded.bytes).sum();
        if bytes <= budget {
            return None;
        }
        loaded()
            .filter(|(model, _)| *model != keep)
            .min_by_key(|(_, loaded)| loaded.used)
            .map(|(model, _)| model)
    }

    pub(super) fn unload(&mut self, model: usize) {
        self.entries[model].loaded = None;
        metrics::models(self.loaded());
        tracing::info!(model = self.name(model), "model unloaded");
    }

    fn loaded(&self) -> usize {
        let entries = self.entries.iter();
        entries.filter(|entry| entry.loaded.is_some()).count()
    }
}
