//! The slots of the budget page, one for each worker of a session whatever program it runs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Hands out the lowest free slot.
#[derive(Debug, Default)]
pub(super) struct BudgetSlots {
    free: BinaryHeap<Reverse<usize>>,
    taken: usize,
}

impl BudgetSlots {
    /// Takes the lowest free slot; slot 0 is the owner's.
    pub(super) fn take(&mut self) -> usize {
        if let Some(Reverse(slot)) = self.free.pop() {
            return slot;
        }
        self.taken += 1;
        self.taken
    }

    /// Gives a slot back, after its worker has died and its reservations are cleared.
    pub(super) fn give_back(&mut self, slot: usize) {
        self.free.push(Reverse(slot));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_slot_is_next() {
        let mut slots = BudgetSlots::default();
        assert_eq!([slots.take(), slots.take(), slots.take()], [1, 2, 3]);
        slots.give_back(2);
        slots.give_back(1);
        assert_eq!([slots.take(), slots.take(), slots.take()], [1, 2, 4]);
    }
}
