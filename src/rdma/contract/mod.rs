//! The promises of [`Provider`](super::Provider), each tested once for all providers.
//!
//! A promise is a function that takes a [`Bed`] (providers, and a way to let time pass) and panics when the promise
//! is broken. [`PROMISES`] lists them; [`keep_promises`] runs them all, each on a new bed. Whatever a promise is
//! about, each of them also checks at every event that completions come in order, that every posted buffer and
//! request comes back exactly once, and that nothing follows `Disconnected`.
//!
//! May import the boundary, and the simulated provider for its bed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

mod bed;
mod closing;
mod connecting;
mod ends;
mod memory;
mod messages;
#[cfg(test)]
mod tests;

pub use bed::{Bed, RealBed, SimBed};

/// A name and what it says.
pub type Promise = (&'static str, fn(&mut dyn Bed));

/// Calls a macro with all promises, as `module::function` paths.
macro_rules! with_promises {
    ($callback:ident) => {
        $callback! {
            connecting::private_data_and_addresses_reach_both_sides,
            connecting::depths_are_those_both_sides_allow,
            connecting::a_rejected_peer_hears_of_it,
            connecting::a_dropped_request_is_rejected,
            connecting::nobody_listening_is_a_failure,
            connecting::an_unheard_listener_is_a_failure,
            connecting::a_sibling_may_adopt,
            connecting::an_unanswered_connect_times_out,
            connecting::every_step_can_be_closed,
            connecting::a_queue_pair_made_too_late_is_given_back,
            connecting::ids_that_are_gone_do_nothing,
            connecting::fifty_connections_live_side_by_side,
            messages::every_size_arrives,
            messages::gather_lists_arrive_as_one_message,
            messages::both_directions_keep_their_order,
            messages::what_arrives_with_the_connection_is_received,
            messages::unsignalled_requests_come_back,
            messages::a_full_queue_takes_what_fits,
            messages::memory_of_another_domain_is_refused,
            memory::writes_land_exactly,
            memory::reads_bring_exactly,
            memory::bulk_moves_both_ways,
            memory::a_message_follows_its_writes,
            memory::a_bind_precedes_its_message,
            memory::reads_beyond_the_depth_wait,
            memory::a_read_is_over_when_its_bytes_are_there,
            memory::an_invalidated_window_is_given_back,
            memory::the_peer_may_invalidate,
            memory::a_bound_window_stays,
            memory::foreign_keys_are_refused,
            memory::bounds_are_kept,
            memory::rights_are_kept,
            memory::a_revoked_key_is_refused,
            closing::an_abort_gives_everything_back,
            closing::a_drain_delivers_everything,
            closing::a_drain_ends_at_its_deadline,
            closing::both_may_drain_at_once,
            closing::closing_twice_is_closing_once,
            closing::who_closes_is_the_reason,
            closing::one_end_does_not_touch_another,
            closing::a_dropped_provider_is_noticed,
        }
    };
}
#[cfg(test)]
use with_promises;

macro_rules! list {
    ($($module:ident::$name:ident,)*) => {
        /// Every promise by its name.
        pub const PROMISES: &[Promise] = &[$((stringify!($name), $module::$name),)*];
    };
}

with_promises!(list);

/// Runs the promises, except those that the devices at hand are known to break, each on a bed of its own, and says on
/// standard error which of them are kept.
///
/// # Panics
/// At the end, with the names of the promises that are broken.
pub fn keep_promises(mut bed: impl FnMut() -> Box<dyn Bed>, except: &[&str]) {
    let mut broken = Vec::new();
    for (name, promise) in PROMISES.iter().filter(|(name, _)| !except.contains(name)) {
        let started = Instant::now();
        let mut bed = bed();
        let kept = catch_unwind(AssertUnwindSafe(|| promise(&mut *bed))).is_ok();
        let seconds = started.elapsed().as_secs_f32();
        eprintln!(
            "{name}: {} ({seconds:.1} s)",
            if kept { "kept" } else { "BROKEN" }
        );
        if !kept {
            broken.push(*name);
        }
    }
    assert!(broken.is_empty(), "broken promises: {broken:?}");
}
