//! What is done with a server, and what must come of it.

use std::fs;
use std::time::Instant;

use tokio::task::JoinSet;

use crate::args::Args;
use crate::content::Content;
use crate::failure::{Failure, Result};
use crate::link::Link;
use crate::report::Report;
use crate::share::{Share, Travelled, Way};

/// Beside data that is placed, messages carry requests and answers: so many bytes each, at most.
const MESSAGE: u64 = 1024;
/// A directory's listing, opening and closing files.
const FEW_MESSAGES: u64 = 16 << 10;
/// Bytes of each of the files that are written and read together.
const TOGETHER: u64 = 300_001;

/// Everything with one server.
pub(crate) async fn run(args: &Args) -> Result<()> {
    let link = Link::connect(args.carrier, args.server).await?;
    let mut report = Report::new(args, link.transport.info());
    let share = Share::open(&link, args).await?;
    println!(
        "{}, {}; largest message {} out, {} in; {:?}, {}",
        link.transport.info().kind,
        args.server,
        link.transport.limits().max_send,
        link.transport.limits().max_receive,
        share.dialect(),
        if share.signed() { "signed" } else { "unsigned" },
    );
    let mut files = Vec::new();
    for way in args.ways.clone().unwrap_or_else(|| share.ways()) {
        files.extend(one_way(&share, args, way, &mut report).await?);
    }
    if let Some(path) = &args.sums {
        let lines = files
            .iter()
            .map(|(name, content)| format!("{}  {name}\n", content.sum()));
        fs::write(path, lines.collect::<String>())?;
    }
    if !args.keep {
        for (name, _) in &files {
            share.delete(name).await?;
        }
    }
    share.disconnect().await?;
    let stats = link.transport.stats();
    println!(
        "{} registrations, {} exposures invalidated by the server, {} messages",
        stats.registrations,
        stats.remote_invalidations,
        stats.messages_sent + stats.messages_received
    );
    link.close().await;
    Ok(())
}

type Files = Vec<(String, Content)>;

/// All sizes one after the other, then several files together.
async fn one_way(share: &Share, args: &Args, way: Way, report: &mut Report) -> Result<Files> {
    let mut files: Files = Vec::new();
    for &len in &args.sizes {
        let seed = files.len() as u64 + 1;
        files.push((format!("{way}-{len}"), Content { seed, len }));
    }
    let label = format!("{way}, {} files", files.len());
    let work = async {
        for (name, content) in &files {
            share.upload(name, *content, way).await?;
        }
        Ok(())
    };
    measured(
        share,
        report,
        &format!("upload by {label}"),
        way,
        &files,
        work,
    )
    .await?;
    measured(
        share,
        report,
        "list",
        Way::Messages,
        &[],
        list(share, &files),
    )
    .await?;
    let work = async {
        for (name, content) in &files {
            share.download(name, *content, way).await?;
        }
        Ok(())
    };
    measured(
        share,
        report,
        &format!("download by {label}"),
        way,
        &files,
        work,
    )
    .await?;

    let together: Files = (0..args.together)
        .map(|seed| {
            let content = Content {
                seed: seed << 32,
                len: TOGETHER,
            };
            (format!("{way}-together-{seed}"), content)
        })
        .collect();
    if !together.is_empty() {
        let label = format!("{} files at once by {way}", together.len());
        let twice: Files = together.iter().chain(&together).cloned().collect();
        let work = at_once(share, &together, way);
        measured(share, report, &label, way, &twice, work).await?;
    }
    files.extend(together);
    Ok(files)
}

/// Writes all files at once and reads each back.
async fn at_once(share: &Share, files: &Files, way: Way) -> Result<()> {
    let mut tasks = JoinSet::new();
    for (name, content) in files {
        let (share, name, content) = (share.clone(), name.clone(), *content);
        tasks.spawn(async move {
            share.upload(&name, content, way).await?;
            share.download(&name, content, way).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Every file is listed with its size.
async fn list(share: &Share, files: &Files) -> Result<()> {
    let listing = share.list().await?;
    for (name, content) in files {
        let found = listing.iter().find(|(listed, _)| listed == name);
        let found = found.map(|&(_, len)| len);
        if found != Some(content.len) {
            return Err(Failure::Listing {
                name: name.clone(),
                len: content.len,
                found,
            });
        }
    }
    Ok(())
}

/// Does the work, checks how the bytes of `files` travelled meanwhile, and reports it.
async fn measured(
    share: &Share,
    report: &mut Report,
    scenario: &str,
    way: Way,
    files: &[(String, Content)],
    work: impl Future<Output = Result<()>>,
) -> Result<()> {
    let (before, started) = (share.travelled(), Instant::now());
    let mut result = work.await;
    let after = share.travelled();
    let moved = Travelled {
        placed: after.placed - before.placed,
        requests: after.requests - before.requests,
        messages: after.messages - before.messages,
        invalidated: after.invalidated - before.invalidated,
    };
    if result.is_ok() {
        result = check(way, &moved, files);
    }
    report.row(scenario, result.is_ok(), &moved, started.elapsed())?;
    result
}

/// Placed data is placed, all of it, and does not travel in messages as well.
fn check(way: Way, moved: &Travelled, files: &[(String, Content)]) -> Result<()> {
    let expected: u64 = match way {
        Way::Messages => 0,
        Way::Placed { .. } => files.iter().map(|(_, content)| content.len).sum(),
    };
    let Travelled {
        placed,
        requests,
        messages,
        invalidated,
    } = *moved;
    if placed != expected {
        return Err(Failure::Placed { placed, expected });
    }
    if let Way::Placed { invalidate } = way {
        // A WRITE or READ and its answer; for each file CREATE, CLOSE and their answers, and those
        // of a deletion before.
        let allowed = FEW_MESSAGES + MESSAGE * (requests + 4 * files.len() as u64);
        if messages > allowed {
            return Err(Failure::Messages { messages, placed });
        }
        let wanted = if invalidate { requests } else { 0 };
        if invalidated != wanted {
            return Err(Failure::Invalidated {
                invalidated,
                requests: wanted,
            });
        }
    }
    Ok(())
}
