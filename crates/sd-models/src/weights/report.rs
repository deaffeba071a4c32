//! What a set of weights lacks, and what it has too much.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::Component;

/// How a network's tensors compare with the weights it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadReport {
    /// The network.
    pub component: Component,
    /// Tensors that the network has and the weights do not: name and expected shape.
    pub missing: BTreeMap<String, Vec<usize>>,
    /// Tensors of the right name that cannot be used.
    pub mismatched: BTreeMap<String, Mismatch>,
    /// Tensors of the weights that the network has no place for.
    pub unexpected: BTreeSet<String>,
    /// Whether the search was given up because too much was missing; the lists are then incomplete.
    pub stopped: bool,
}

/// Why a tensor cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    /// Its shape is not the one that follows from the configuration.
    Shape {
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape of the network.
        expected: Vec<usize>,
    },
    /// Its type is not f32, f16 or bf16.
    Dtype {
        /// The type in the file, as safetensors spells it.
        found: String,
    },
}

impl LoadReport {
    /// Whether the network got all of its tensors.
    pub fn is_usable(&self) -> bool {
        self.missing.is_empty() && self.mismatched.is_empty() && !self.stopped
    }

    /// One sentence on the unexpected tensors, if there are any.
    pub fn warning(&self) -> Option<String> {
        let first = self.unexpected.first()?;
        Some(match self.unexpected.len() - 1 {
            0 => format!(
                "{}: unexpected tensor `{first}` is not used",
                self.component
            ),
            more => format!(
                "{}: unexpected tensors `{first}` and {more} more are not used",
                self.component
            ),
        })
    }
}

/// Tensors that a report spells out. One wrong configuration makes thousands of them wrong.
const LISTED: usize = 10;

impl fmt::Display for LoadReport {
    /// A sentence, then one line for each of the first tensors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            component,
            missing,
            mismatched,
            ..
        } = self;
        write!(f, "{component}: the weights do not fit the configuration")?;
        for (name, expected) in missing.iter().take(LISTED) {
            write!(f, "\n  `{name}` is missing, expected {expected:?}")?;
        }
        for (name, mismatch) in mismatched.iter().take(LISTED.saturating_sub(missing.len())) {
            match mismatch {
                Mismatch::Shape { found, expected } => {
                    write!(f, "\n  `{name}` is {found:?}, expected {expected:?}")?
                }
                Mismatch::Dtype { found } => write!(
                    f,
                    "\n  `{name}` is of type {found}, expected F32, F16 or BF16"
                )?,
            }
        }
        match (missing.len() + mismatched.len()).saturating_sub(LISTED) {
            _ if self.stopped => f.write_str("\n  and more"),
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}
