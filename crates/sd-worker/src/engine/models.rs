//! The loaded models: as many as the budget allows, the least recently used go first.

use std::time::{Duration, Instant};

use sd_pipeline::{Pipeline, PipelineBuilder};

use super::{Error, ModelEntry, metrics};

/// A model stays for this many times the time its loading took, before one of equal right may push it out: at most a
/// fifth of the time goes into loading.
const STAY: u32 = 4;

pub(super) struct Models {
    entries: Vec<Entry>,
    /// Bytes of weights and runs.
    budget: Option<u64>,
    /// When the model loaded last may be pushed out.
    stays_until: Option<Instant>,
}

struct Entry {
    name: String,
    builder: PipelineBuilder,
    /// Bytes of its weights.
    bytes: u64,
    loaded: Option<Loaded>,
}

struct Loaded {
    pipeline: Pipeline,
    used: Instant,
}

impl Models {
    /// # Errors
    /// A model's configuration is wrong or missing.
    pub(super) fn new(entries: Vec<ModelEntry>, budget: Option<u64>) -> Result<Self, Error> {
        let entry = |ModelEntry { name, builder }| match builder.model_memory() {
            Ok(memory) => Ok(Entry {
                name,
                builder,
                bytes: memory.weights(),
                loaded: None,
            }),
            Err(source) => Err(Error::Model {
                name,
                source: Box::new(source),
            }),
        };
        Ok(Self {
            entries: entries.into_iter().map(entry).collect::<Result<_, _>>()?,
            budget,
            stays_until: None,
        })
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
    pub(super) fn load(&mut self, model: usize) -> sd_pipeline::Result<()> {
        let start = Instant::now();
        let entry = &mut self.entries[model];
        let pipeline = entry.builder.clone().build()?;
        // Hashed now, as every picture and checkpoint needs it.
        pipeline.weights_sha256()?;
        let used = Instant::now();
        entry.loaded = Some(Loaded { pipeline, used });
        let took = used - start;
        self.stays_until = used.checked_add(took.max(Duration::from_millis(1)) * STAY);
        metrics::stage("load", took);
        metrics::models(self.loaded().count());
        tracing::info!(model = self.name(model), ?took, "model loaded");
        Ok(())
    }

    /// The model to unload so that `model` fits into the budget beside the others.
    pub(super) fn surplus(&self, model: usize) -> Option<usize> {
        let others = || self.loaded().filter(|(index, ..)| *index != model);
        let bytes: u64 = others().map(|(_, entry, _)| entry.bytes).sum();
        if bytes.saturating_add(self.entries[model].bytes) <= self.budget? {
            return None;
        }
        let oldest = others().min_by_key(|(_, _, loaded)| loaded.used);
        oldest.map(|(index, ..)| index)
    }

    /// Bytes that the loaded weights leave of the budget.
    pub(super) fn room(&self) -> u64 {
        let weights: u64 = self.loaded().map(|(_, entry, _)| entry.bytes).sum();
        self.budget
            .map_or(u64::MAX, |budget| budget.saturating_sub(weights))
    }

    pub(super) fn unload(&mut self, model: usize) {
        self.entries[model].loaded = None;
        metrics::models(self.loaded().count());
        tracing::info!(model = self.name(model), "model unloaded");
    }

    fn loaded(&self) -> impl Iterator<Item = (usize, &Entry, &Loaded)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(index, entry)| Some((index, entry, entry.loaded.as_ref()?)))
    }
}
