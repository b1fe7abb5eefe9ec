//! How much work planning may be. It is counted and not timed, so that a map has the same plan on every machine.

use std::cell::Cell;

use super::tuning::Tuning;
use crate::error::{Error, Result};

/// Counts the steps of making one plan.
pub(super) struct Effort {
    spent: Cell<u64>,
    /// Where the search for the present map ends.
    end: Cell<u64>,
    /// Where its present part ends.
    part_end: Cell<u64>,
    /// Whether something was left out.
    cut_short: Cell<bool>,
}

impl Effort {
    pub fn new() -> Self {
        let end = Tuning::MAX_SEARCH_STEPS;
        Self { spent: Cell::new(0), end: Cell::new(end), part_end: Cell::new(end), cut_short: Cell::new(false) }
    }

    /// Begins the search for another map, which may do one part in `parts` of what a search may do.
    pub fn begin(&self, parts: u64) {
        self.end.set(self.spent.get() + Tuning::MAX_SEARCH_STEPS / parts);
        self.part_end.set(self.end.get());
        self.cut_short.set(false);
    }

    /// Begins a part of the search, of which there are `left` with this one: each has an even share of what is left.
    pub fn begin_part(&self, left: usize) {
        let spent = self.spent.get();
        self.part_end.set(spent + self.end.get().saturating_sub(spent) / left.max(1) as u64);
    }

    /// Counts some steps.
    ///
    /// # Errors
    /// If they are more than any plan is worth.
    pub fn spend(&self, steps: u64) -> Result<()> {
        self.spent.set(self.spent.get() + steps);
        if self.spent.get() <= Tuning::MAX_STEPS {
            return Ok(());
        }
        Err(Error::input("this device map takes too long to plan")
            .hint("fewer replicas, places, cuts or sizes, or a smaller batch or in_flight"))
    }

    /// Whether a search has to do with what it has found.
    pub fn is_spent(&self) -> bool {
        let is_spent = self.spent.get() >= self.part_end.get();
        self.cut_short.set(self.cut_short.get() || is_spent);
        is_spent
    }

    /// Whether a search was told so.
    pub fn was_cut_short(&self) -> bool {
        self.cut_short.get()
    }
}
