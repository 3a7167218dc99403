//! A core's connections, by the names that its provider gives them.
//!
//! A name is a place in a table and a generation. A provider may give a place to the next connection as soon as the former
//! one has ended, and before that end was reported: until then both are here.

use super::setup::Entry;
use crate::rdma::ConnId;

/// The connections.
#[derive(Default)]
pub(crate) struct Entries {
    places: Vec<Option<Box<Entry>>>,
    /// Those whose place another one has. Their end is about to be reported, so that they are never many.
    // Moving the boxes to and fro is cheaper.
    #[allow(clippy::vec_box)]
    outlived: Vec<Box<Entry>>,
}

impl Entries {
    /// Adds a connection, or one that was taken out for a while.
    pub(crate) fn put(&mut self, entry: Box<Entry>) {
        let index = entry.conn.id.index as usize;
        if self.places.len() <= index {
            self.places.resize_with(index + 1, || None);
        }
        match &mut self.places[index] {
            // Which of the two is the newer one makes no difference.
            Some(_) => self.outlived.push(entry),
            place => *place = Some(entry),
        }
    }

    /// Takes a connection out.
    pub(crate) fn take(&mut self, id: ConnId) -> Option<Box<Entry>> {
        let place = self.places.get_mut(id.index as usize)?;
        place.take_if(|entry| entry.conn.id == id).or_else(|| {
            let at = self.outlived.iter().position(|entry| entry.conn.id == id)?;
            Some(self.outlived.swap_remove(at))
        })
    }

    pub(crate) fn get(&self, id: ConnId) -> Option<&Entry> {
        let place = self.places.get(id.index as usize)?;
        let mut all = place.iter().chain(&self.outlived);
        all.find(|entry| entry.conn.id == id).map(Box::as_ref)
    }

    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut Entry> {
        let place = self.places.get_mut(id.index as usize)?;
        let mut all = place.iter_mut().chain(&mut self.outlived);
        all.find(|entry| entry.conn.id == id).map(Box::as_mut)
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        let all = self.places.iter().flatten().chain(&self.outlived);
        all.map(Box::as_ref)
    }

    /// Takes all of them out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Box<Entry>> + '_ {
        self.places
            .drain(..)
            .flatten()
            .chain(self.outlived.drain(..))
    }
}
