//! Values that change from step to step.

use std::{collections::HashMap, hash::Hash};

use crate::Result;

/// What holds in each step of a run, which are counted from 0.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Timeline<T> {
    first: T,
    /// What holds from a step on, in the order of steps.
    changes: Vec<(usize, T)>,
}

impl<T> Timeline<T> {
    /// `value` in every step.
    pub(crate) fn new(value: T) -> Self {
        Self {
            first: value,
            changes: Vec::new(),
        }
    }

    /// The values of step 0 and of `changes`, which are later and in order.
    pub(crate) fn try_from_fn(
        changes: impl IntoIterator<Item = usize>,
        mut value: impl FnMut(usize) -> Result<T>,
    ) -> Result<Self> {
        let first = value(0)?;
        let changes = changes.into_iter();
        let changes = changes.map(|from| Ok((from, value(from)?)));
        Ok(Self {
            first,
            changes: changes.collect::<Result<_>>()?,
        })
    }

    /// The value of a step.
    pub(crate) fn at(&self, step: usize) -> &T {
        let later = self.changes.partition_point(|(from, _)| *from <= step);
        match later.checked_sub(1) {
            Some(change) => &self.changes[change].1,
            None => &self.first,
        }
    }

    /// The value of each span of steps, in their order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        [&self.first]
            .into_iter()
            .chain(self.changes.iter().map(|(_, value)| value))
    }

    /// The steps from which on another value holds.
    pub(crate) fn changes(&self) -> impl Iterator<Item = usize> {
        self.changes.iter().map(|(from, _)| *from)
    }
}

impl<T: PartialEq> Timeline<T> {
    /// Lets `value` hold from a step on that is later than all changes so far.
    pub(crate) fn change(&mut self, from: usize, value: T) {
        let last = self.changes.last().map_or(&self.first, |(_, last)| last);
        if *last != value {
            self.changes.push((from, value));
        }
    }
}

impl<T: Eq + Hash> Timeline<T> {
    /// `f` of every value, called once for those that are equal.
    pub(crate) fn try_map<U: Clone>(
        &self,
        mut f: impl FnMut(&T) -> Result<U>,
    ) -> Result<Timeline<U>> {
        let mut known = HashMap::new();
        let mut map = |value| -> Result<U> {
            if let Some(mapped) = known.get(value) {
                return Ok(U::clone(mapped));
            }
            let mapped = f(value)?;
            known.insert(value, mapped.clone());
            Ok(mapped)
        };
        Ok(Timeline {
            first: map(&self.first)?,
            changes: self
                .changes
                .iter()
                .map(|(from, value)| Ok((*from, map(value)?)))
                .collect::<Result<_>>()?,
        })
    }
}
