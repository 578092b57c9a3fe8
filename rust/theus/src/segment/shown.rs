//! The bytes of a published segment: mapped while somebody looks at them, and for a while after.

use std::sync::{Arc, OnceLock, Weak};

use arrow::array::RecordBatch;

use crate::error::Result;
use crate::kept::Ticket;
use crate::mapping::Mapping;

/// A mapping, and what was made of it.
#[derive(Debug)]
pub(super) struct View {
    pub(super) mapping: Arc<Mapping>,
    pub(super) batches: OnceLock<Vec<RecordBatch>>,
}

impl View {
    fn of(mapping: Arc<Mapping>) -> Arc<Self> {
        let batches = OnceLock::new();
        Arc::new(Self { mapping, batches })
    }
}

/// How to come to the bytes.
#[derive(Debug)]
pub(super) struct Shown {
    view: Weak<View>,
    /// As long as anybody has it, no other is made: addresses tell what a view is of.
    mapping: Weak<Mapping>,
    ticket: Ticket,
    /// It stays for as long as the segment does: its name is not promised to be there.
    pub(super) held: Option<Arc<View>>,
}

impl Shown {
    /// What stays mapped.
    pub(super) fn held(mapping: Arc<Mapping>) -> Self {
        Self {
            view: Weak::new(),
            mapping: Weak::new(),
            ticket: Ticket::default(),
            held: Some(View::of(mapping)),
        }
    }

    /// What is mapped again at a look when it had to make room for others.
    pub(super) fn kept(mapping: Arc<Mapping>) -> Self {
        let mut shown = Self {
            held: None,
            ..Self::held(Arc::clone(&mapping))
        };
        shown.keep(View::of(mapping));
        shown
    }

    /// The bytes, which `map` maps if they are not.
    pub(super) fn look(&mut self, map: impl FnOnce() -> Result<Arc<Mapping>>) -> Result<Arc<View>> {
        if let Some(view) = &self.held {
            return Ok(Arc::clone(view));
        }
        let view = match (self.view.upgrade(), self.mapping.upgrade()) {
            (Some(view), _) => view,
            (None, Some(mapping)) => View::of(mapping),
            (None, None) => View::of(map()?),
        };
        Ok(self.keep(view))
    }

    fn keep(&mut self, view: Arc<View>) -> Arc<View> {
        if self.view.as_ptr() != Arc::as_ptr(&view) {
            self.view = Arc::downgrade(&view);
            self.mapping = Arc::downgrade(&view.mapping);
            self.ticket = Ticket::default();
        }
        self.ticket.keep(|| Arc::<View>::clone(&view));
        view
    }
}
