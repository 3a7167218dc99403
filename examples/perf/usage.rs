//! What this process has used, as Linux counts it.

use std::fs;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub(crate) struct Usage {
    /// Time of all threads, the kernel's work for them included.
    pub(crate) processor: Duration,
    /// Bytes of memory that are resident.
    pub(crate) resident: u64,
}

impl Usage {
    pub(crate) fn now() -> Result<Self, String> {
        // Never below zero, nor a second or more in the second half.
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let processor = Duration::new(time.tv_sec as u64, time.tv_nsec as u32);
        let path = "/proc/self/status";
        let status = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .ok_or_else(|| format!("{path} does not say how much memory is resident"))?;
        Ok(Self {
            processor,
            resident: resident * 1024,
        })
    }
}
