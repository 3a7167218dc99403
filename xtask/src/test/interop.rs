//! `cargo xtask interop`: everything that runs against other implementations, at length.

use std::fs;

use super::scripts;
use super::stage::Machine;
use super::{Summary, run_all, table};
use crate::cli::{Arguments, Outcome, unknown};
use crate::error::{Context, Result};

pub(crate) const HELP: &str = "
Usage: cargo xtask interop [SCRIPT...]

Runs the scripts about other implementations in their long form, in guests with rxe and with siw,
and prints a table of what was tried: peer, provider, scenario, result, bytes by RDMA and in
messages. `cargo xtask test interop` runs their short form.

SCRIPT: only these, by name without .sh, of those in xtask/guest/tests with `# stage: interop`.";

const HEADINGS: [&str; 6] = [
    "peer",
    "provider",
    "scenario",
    "result",
    "bytes by RDMA",
    "bytes in messages",
];

pub(crate) fn run(mut arguments: Arguments) -> Result<Outcome> {
    let mut names = Vec::new();
    while let Some(word) = arguments.next() {
        if word.starts_with('-') {
            return Err(unknown(&word));
        }
        names.push(word);
    }
    let scripts = scripts::long_stages(&names)?;
    // The scripts' time is not for building.
    let stages: Vec<_> = table::before_guests().into_iter().chain(scripts).collect();
    let path = scripts::rows();
    // Those of an earlier run.
    if path.exists() {
        fs::remove_file(&path).context(path.display())?;
    }
    let summary: Summary = run_all(&stages, &Machine::new(true));
    let text = fs::read_to_string(&path).unwrap_or_default();
    println!("\n{}", as_table(&text));
    Ok(summary.report(true))
}

/// Rows of values between tabs as a table with headings; numbers are on the right.
fn as_table(text: &str) -> String {
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    let cell = |row: &[&str], column: usize| row.get(column).map_or("", |cell| *cell).to_owned();
    let mut widths = HEADINGS.map(str::len);
    for row in &rows {
        for (column, width) in widths.iter_mut().enumerate() {
            *width = (*width).max(cell(row, column).chars().count());
        }
    }
    let mut lines = vec![HEADINGS.to_vec()];
    let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    lines.push(rules.iter().map(String::as_str).collect());
    lines.extend(rows);
    let line = |row: &Vec<&str>| {
        let cells = widths.iter().enumerate().map(|(column, &width)| {
            let cell = cell(row, column);
            match column {
                4.. => format!("{cell:>width$}"),
                _ => format!("{cell:<width$}"),
            }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    lines.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_a_table() {
        let text = as_table("ksmbd\tverbs on rxe0\tlist\tok\t0\t12345\nshort\trow\n");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("peer   provider       scenario"));
        assert!(lines[2].ends_with("ok                  0              12345"));
        assert_eq!(lines[3], "short  row");
    }
}
