//! A line per scenario, for people and for a table of several runs.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use smbdirect::transport::Info;

use crate::args::Args;
use crate::failure::Result;
use crate::share::Travelled;

pub(crate) struct Report {
    peer: String,
    provider: String,
    rows: Option<PathBuf>,
}

impl Report {
    pub(crate) fn new(args: &Args, info: &Info) -> Self {
        let provider = match (info.provider, &info.device) {
            (Some(provider), Some(device)) => format!("{provider} on {device}"),
            (Some(provider), None) => provider.to_string(),
            (None, _) => "tcp".to_owned(),
        };
        Self {
            peer: args.peer.clone(),
            provider,
            rows: args.rows.clone(),
        }
    }

    pub(crate) fn row(
        &mut self,
        scenario: &str,
        passed: bool,
        moved: &Travelled,
        took: Duration,
    ) -> Result<()> {
        let result = if passed { "ok" } else { "FAILED" };
        println!(
            "{scenario}: {result}, {} bytes by RDMA in {} requests, {} in messages, {:.2} s",
            moved.placed,
            moved.requests,
            moved.messages,
            took.as_secs_f64()
        );
        let Some(path) = &self.rows else {
            return Ok(());
        };
        let mut file = File::options().append(true).create(true).open(path)?;
        writeln!(
            file,
            "{}\t{}\t{scenario}\t{result}\t{}\t{}",
            self.peer, self.provider, moved.placed, moved.messages
        )?;
        Ok(())
    }
}
