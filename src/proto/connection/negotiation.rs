//! The first two messages of a connection ([MS-SMBD] 3.1.5.3, 3.1.5.6, 3.1.5.7). May import what the
//! connection does.

use std::time::Instant;

use super::{Connection, Phase};
use crate::proto::wire::{self, NegotiateRequest, NegotiateResponse};
use crate::proto::{Delivery, DisconnectReason, PeerIncompatible, Transmit, negotiate};

impl Connection {
    pub(super) fn receive_request(&mut self, message: &[u8]) -> Result<Delivery, DisconnectReason> {
        let request = NegotiateRequest::parse(message)?;
        match negotiate::evaluate_request(&self.config, &request) {
            Ok(parameters) => {
                self.credits.set_peer_target(parameters.peer_credit_target);
                self.parameters = Some(parameters);
                self.phase = Phase::SendResponse;
            }
            Err(
                reason @ DisconnectReason::PeerIncompatible(PeerIncompatible::NoCommonVersion {
                    ..
                }),
            ) => {
                self.refuse(wire::STATUS_NOT_SUPPORTED, reason);
            }
            Err(reason) => return Err(reason),
        }
        Ok(Delivery::Nothing)
    }

    pub(super) fn receive_response(
        &mut self,
        now: Instant,
        message: &[u8],
    ) -> Result<Delivery, DisconnectReason> {
        let response = NegotiateResponse::parse(message)?;
        let parameters = negotiate::evaluate_response(&self.config, &response)?;
        self.credits.set_peer_target(parameters.peer_credit_target);
        self.credits
            .add_send_credits(parameters.initial_send_credits);
        self.stats.credits_received += u64::from(parameters.initial_send_credits);
        self.timer.restart(now, parameters.keepalive_interval);
        self.parameters = Some(parameters);
        self.phase = Phase::PostReceives;
        Ok(Delivery::Nothing)
    }

    pub(super) fn transmit_response(&mut self, now: Instant) -> Option<Transmit> {
        let granted = self.credits.grant_initial(now);
        self.stats.credits_granted += u64::from(granted);
        let parameters = self.parameters.as_mut()?;
        parameters.initial_receive_credits = granted;
        let response = negotiate::response(&self.config, parameters, granted);
        self.timer.restart(now, parameters.keepalive_interval);
        self.enter_established();
        Some(Transmit::response(&response))
    }

    pub(super) fn refuse(&mut self, status: u32, reason: DisconnectReason) {
        self.reason = Some(reason);
        self.phase = Phase::SendFailure { status };
    }

    pub(super) fn enter_established(&mut self) {
        self.phase = Phase::Established;
        self.negotiated = true;
    }
}
