//! A limit of the work for one plan, counted in steps, so that a map has the same plan on every machine.

use std::cell::Cell;

use super::tuning::Tuning;
use crate::error::{Error, Result};

/// Counts the steps that are spent on one plan.
pub(super) struct Effort {
    spent: Cell<u64>,
    /// The number of spent steps at which the search for the current map ends.
    end: Cell<u64>,
    /// The number of spent steps at which the current part of that search ends.
    part_end: Cell<u64>,
    /// Whether a search ended before it was complete.
    cut_short: Cell<bool>,
}

impl Effort {
    pub fn new() -> Self {
        let end = Tuning::MAX_SEARCH_STEPS;
        Self { spent: Cell::new(0), end: Cell::new(end), part_end: Cell::new(end), cut_short: Cell::new(false) }
    }

    /// Begins the search for another map, with one part in `parts` of the steps that a search may use.
    pub fn begin(&self, parts: u64) {
        self.end.set(self.spent.get() + Tuning::MAX_SEARCH_STEPS / parts);
        self.part_end.set(self.end.get());
        self.cut_short.set(false);
    }

    /// Begins one part of the search. `left` is the number of parts that remain, including this one; each gets an equal
    /// share of the remaining steps.
    pub fn begin_part(&self, left: usize) {
        let spent = self.spent.get();
        self.part_end.set(spent + self.end.get().saturating_sub(spent) / left.max(1) as u64);
    }

    /// Counts `steps`.
    ///
    /// # Errors
    /// If the plan has used more steps than any plan may.
    pub fn spend(&self, steps: u64) -> Result<()> {
        self.spent.set(self.spent.get() + steps);
        if self.spent.get() <= Tuning::MAX_STEPS {
            return Ok(());
        }
        Err(Error::input("this device map takes too long to plan")
            .hint("fewer replicas, places, cuts or sizes, or a smaller batch or in_flight"))
    }

    /// Whether the current part has used its steps, so that its search must end.
    pub fn is_spent(&self) -> bool {
        let is_spent = self.spent.get() >= self.part_end.get();
        self.cut_short.set(self.cut_short.get() || is_spent);
        is_spent
    }

    /// Whether `is_spent` has ended a search of the current map.
    pub fn was_cut_short(&self) -> bool {
        self.cut_short.get()
    }
}
