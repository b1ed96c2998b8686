//! `durable.json`: everything that one run found.
//!
//! Invariant: percentiles come from the merged histograms of all blocks; a ratio is of two turns of the same block, so that
//! what drifts from block to block is on both sides. Must not know how anything was measured.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::system::Kind;
use super::turn::Outcome;
use crate::Failure;
use crate::machine::Machine;
use crate::stats::{Percentiles, Spread, histogram};

/// The schema of the file.
pub const SCHEMA: u64 = 1;

/// One run.
#[derive(Debug, Serialize)]
pub struct Durable {
    pub schema: u64,
    /// RFC 3339.
    pub begun_at: String,
    pub command: String,
    pub seed: u64,
    pub machine: Machine,
    /// Of the folder that the harness was started in.
    pub commit: Option<String>,
    pub dirty: Option<bool>,
    pub versions: BTreeMap<String, String>,
    /// How each system was set up.
    pub setups: BTreeMap<String, String>,
    pub scenario: Scenario,
    /// 4 KiB written over and synced, alone, between the blocks.
    pub device: Percentiles,
    pub rows: Vec<Row>,
    pub ratios: Vec<Ratio>,
    /// What changes how figures are to be read.
    pub notes: Vec<String>,
}

/// What all rows share.
#[derive(Debug, Serialize)]
pub struct Scenario {
    pub file_system: String,
    pub clients: Vec<usize>,
    /// Memories of one add.
    pub batch: usize,
    pub blocks: u16,
    /// Timed, of each turn.
    pub seconds: f64,
    /// Before that, of each turn.
    pub warm_up_seconds: f64,
    pub dim: usize,
    pub texts: String,
    /// Searches beside the adds of `flashbulb-searched`.
    pub searches_per_s: f64,
}

/// One system with so many clients.
#[derive(Debug, Serialize)]
pub struct Row {
    pub system: String,
    /// Between what the time of an add is taken.
    pub boundary: String,
    pub clients: usize,
    /// Memories acknowledged a second, by block.
    pub adds_per_s: Spread,
    /// Of one acknowledged add, of all blocks.
    pub latency: Percentiles,
    pub bytes_per_add: Spread,
    /// Bytes that reached the device for each memory in the timed stretch, those of other processes included.
    pub written_per_add: Option<Spread>,
    /// The same from the making of the store until it was closed and synced.
    pub written_per_add_whole: Option<Spread>,
    /// Of searches beside the adds.
    pub searches: Option<Percentiles>,
    /// Memories acknowledged a second, block by block.
    pub blocks: Vec<f64>,
}

/// How much faster Flashbulb's engine is.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    pub to: String,
    pub clients: usize,
    pub spread: Spread,
    /// Block by block.
    pub blocks: Vec<f64>,
}

/// The turns of one system with so many clients.
pub struct Collected {
    kind: Kind,
    clients: usize,
    latency: Histogram<u64>,
    searches: Option<Histogram<u64>>,
    rates: Vec<f64>,
    bytes: Vec<f64>,
    written: Vec<f64>,
    written_whole: Vec<f64>,
}

impl Collected {
    /// Nothing yet.
    ///
    /// # Errors
    /// Never.
    pub fn new(kind: Kind, clients: usize) -> Result<Collected, Failure> {
        Ok(Collected {
            kind,
            clients,
            latency: histogram()?,
            searches: None,
            rates: Vec::new(),
            bytes: Vec::new(),
            written: Vec::new(),
            written_whole: Vec::new(),
        })
    }

    /// One more block.
    ///
    /// # Errors
    /// Never.
    pub fn add(&mut self, outcome: Outcome) -> Result<(), Failure> {
        self.latency.add(&outcome.latency)?;
        self.rates.push(outcome.memories as f64 / outcome.seconds);
        self.bytes.push(outcome.bytes_per_memory);
        let per_add = outcome.written.map(|w| w as f64 / outcome.memories.max(1) as f64);
        self.written.extend(per_add);
        self.written_whole.extend(outcome.written_whole);
        match (&mut self.searches, outcome.searches) {
            (Some(all), Some(next)) => all.add(&next)?,
            (all @ None, next) => *all = next,
            (Some(_), None) => {}
        }
        Ok(())
    }

    /// What the blocks say together.
    ///
    /// # Errors
    /// If there were none.
    pub fn row(&self) -> Result<Row, Failure> {
        Ok(Row {
            system: self.kind.name().to_owned(),
            boundary: self.kind.boundary().to_owned(),
            clients: self.clients,
            adds_per_s: Spread::of(&self.rates).ok_or("a row without blocks")?,
            latency: Percentiles::of(&self.latency),
            bytes_per_add: Spread::of(&self.bytes).ok_or("a row without blocks")?,
            written_per_add: Spread::of(&self.written),
            written_per_add_whole: Spread::of(&self.written_whole),
            searches: self.searches.as_ref().map(Percentiles::of),
            blocks: self.rates.clone(),
        })
    }
}

/// Flashbulb's engine against each peer with as many clients, block by block.
pub fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let ours = || rows.iter().filter(|row| row.system == Kind::Flashbulb.name());
    let peers = [Kind::Sqlite, Kind::SqliteOne, Kind::Redb].map(Kind::name);
    let of_peers = rows.iter().filter(|row| peers.contains(&&*row.system));
    let ratio = |peer: &Row| {
        let own = ours().find(|row| row.clients == peer.clients)?;
        let blocks: Vec<f64> = own.blocks.iter().zip(&peer.blocks).map(|(a, b)| a / b).collect();
        let (to, spread) = (peer.system.clone(), Spread::of(&blocks)?);
        Some(Ratio { to, clients: peer.clients, spread, blocks })
    };
    of_peers.filter_map(ratio).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outcome(memories: u64) -> Outcome {
        let mut latency = histogram().unwrap();
        latency.record(memories).unwrap();
        Outcome {
            memories,
            seconds: 2.0,
            latency,
            bytes_per_memory: 10.0,
            written: Some(memories * 30),
            written_whole: Some(40.0),
            searches: None,
        }
    }

    fn row(kind: Kind, clients: usize, memories: &[u64]) -> Row {
        let mut all = Collected::new(kind, clients).unwrap();
        memories.iter().for_each(|m| all.add(outcome(*m)).unwrap());
        all.row().unwrap()
    }

    #[test]
    fn a_row_is_of_all_its_blocks() {
        let row = row(Kind::Redb, 8, &[200, 100, 600]);
        assert_eq!(row.adds_per_s, Spread { median: 100.0, least: 50.0, most: 300.0 });
        assert_eq!((row.latency.samples, row.latency.max), (3, 600));
        assert_eq!(row.written_per_add.unwrap().median, 30.0);
        assert_eq!(row.written_per_add_whole.unwrap().most, 40.0);
        assert!(Collected::new(Kind::Redb, 1).unwrap().row().is_err());
    }

    #[test]
    fn ratios_are_of_the_same_block_and_as_many_clients() {
        let rows = [
            row(Kind::Flashbulb, 1, &[200, 400, 900]),
            row(Kind::Flashbulb, 8, &[1000, 1000, 1000]),
            row(Kind::Sqlite, 1, &[100, 800, 300]),
            row(Kind::Redb, 8, &[500, 1000, 2000]),
            row(Kind::Redb, 64, &[1, 1, 1]),
            row(Kind::FlashbulbSocket, 1, &[1, 1, 1]),
        ];
        let ratios = ratios(&rows);
        assert_eq!(ratios.len(), 2);
        assert_eq!((&*ratios[0].to, ratios[0].clients), ("sqlite", 1));
        assert_eq!(ratios[0].blocks, [2.0, 0.5, 3.0]);
        assert_eq!(ratios[1].spread, Spread { median: 1.0, least: 0.5, most: 2.0 });
    }
}
