//! Changes in, batches out: one lane a partition, each with the stretch of history that its next batch will claim. Pure.

use crate::batch::{ChunkHead, Draft, DraftChange, Header};
use crate::change::{Lineage, Partition, Position, Table};

/// How large a batch may grow.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Changes at most, but for those that share one position.
    pub changes: usize,
    /// Bytes before compression after which a batch is full.
    pub bytes: usize,
}

/// A batch that is ready to go.
#[derive(Debug)]
pub struct Outgoing {
    /// For which partition.
    pub partition: Partition,
    /// Where its stretch ends.
    pub to: Position,
    /// The message.
    pub body: Vec<u8>,
}

/// Cuts the stream into batches.
#[derive(Debug)]
pub struct Assembler {
    pipeline: String,
    lineage: Lineage,
    mapping: String,
    limits: BatchLimits,
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    partition: Partition,
    /// Everything up to here is in batches of this session, or was confirmed in an earlier one.
    from: Position,
    draft: Draft,
    /// The position of the draft's newest change.
    newest: Position,
}

impl Assembler {
    /// Begins at `from`; `mapping` is the JSON object that every batch carries.
    pub fn new(pipeline: &str, lineage: Lineage, mapping: String, partitions: u16, from: Position, limits: BatchLimits) -> Assembler {
        let lane = |partition| Lane { partition, from, draft: Draft::default(), newest: from };
        Assembler { pipeline: pipeline.to_owned(), lineage, mapping, limits, lanes: Partition::all(partitions).map(lane).collect() }
    }

    /// Adds a change to its partition's draft. Returns the batch that was full before it.
    pub fn add(&mut self, partition: Partition, change: DraftChange<'_>) -> Option<Outgoing> {
        let lane = &self.lanes[partition.index()];
        debug_assert!(change.at >= lane.newest && change.at > lane.from);
        let newest = lane.newest;
        let full = lane.draft.len() >= self.limits.changes || lane.draft.bytes() >= self.limits.bytes;
        // Changes with one position are never split over two batches.
        let full = if full && change.at > newest { Some(self.cut(partition, newest, None, &[])) } else { None };
        let lane = &mut self.lanes[partition.index()];
        lane.newest = change.at;
        lane.draft.push(change);
        full
    }

    /// Ends every draft at `to`, up to which the stream has been read.
    pub fn flush(&mut self, to: Position) -> Vec<Outgoing> {
        let waiting: Vec<Partition> = self.lanes.iter().filter(|lane| !lane.draft.is_empty()).map(|lane| lane.partition).collect();
        waiting.into_iter().map(|partition| self.cut(partition, to, None, &[])).collect()
    }

    /// A batch without changes, that carries `partition` forward to `to` and may pass on requested resyncs.
    pub fn empty(&mut self, partition: Partition, to: Position, resync: &[Table]) -> Outgoing {
        debug_assert!(self.lanes[partition.index()].draft.is_empty());
        self.cut(partition, to, None, resync)
    }

    /// A batch with the rows of a chunk.
    pub fn chunk<'r>(
        &mut self,
        partition: Partition,
        to: Position,
        head: &ChunkHead,
        rows: impl Iterator<Item = DraftChange<'r>>,
    ) -> Outgoing {
        let lane = &mut self.lanes[partition.index()];
        debug_assert!(lane.draft.is_empty());
        rows.for_each(|row| lane.draft.push(row));
        self.cut(partition, to, Some(head), &[])
    }

    /// The read under way was given up: what follows begins again at `position`.
    pub fn rewind(&mut self, position: Position) {
        for lane in &mut self.lanes {
            debug_assert!(lane.draft.is_empty());
            lane.from = lane.from.min(position);
            lane.newest = lane.from;
        }
    }

    fn cut(&mut self, partition: Partition, to: Position, chunk: Option<&ChunkHead>, resync: &[Table]) -> Outgoing {
        let lane = &mut self.lanes[partition.index()];
        // After a rewind a partition may have been told more than the stream has reached again.
        let to = to.max(lane.from);
        let header = Header {
            pipeline: &self.pipeline,
            lineage: &self.lineage,
            partition,
            from: lane.from,
            to,
            mapping: &self.mapping,
            chunk,
            resync,
        };
        let body = lane.draft.finish(&header);
        lane.from = to;
        lane.newest = to;
        Outgoing { partition, to, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::change::Op;

    const ONE: Partition = Partition { number: 1, of: 2 };
    const TWO: Partition = Partition { number: 2, of: 2 };

    fn assembler(changes: usize) -> Assembler {
        let mapping = r#"{"t":"0 json t:{id:integer}"}"#.to_owned();
        Assembler::new("p", Lineage("l".into()), mapping, 2, Position(1, 0), BatchLimits { changes, bytes: 1 << 20 })
    }

    fn change(at: Position) -> DraftChange<'static> {
        DraftChange { op: Op::Insert, table: "t", pk: "{}", key: "t:1", row: Some("{}"), at, committed_us: 0 }
    }

    fn stretch(outgoing: &Outgoing) -> (Position, Position, usize) {
        let batch = Batch::decode(&outgoing.body, outgoing.partition).unwrap();
        (batch.from, batch.to, batch.changes.len())
    }

    #[test]
    fn the_stretches_of_a_partition_join_without_a_hole() {
        let mut assembler = assembler(2);
        let mut sent = Vec::new();
        for index in 1..=5 {
            sent.extend(assembler.add(ONE, change(Position(2, index))));
        }
        sent.extend(assembler.flush(Position(2, 9)));
        sent.push(assembler.empty(ONE, Position(3, 0), &[]));
        sent.push(assembler.empty(TWO, Position(3, 0), &[]));
        assert_eq!(
            sent.iter().map(stretch).collect::<Vec<_>>(),
            [
                (Position(1, 0), Position(2, 2), 2),
                (Position(2, 2), Position(2, 4), 2),
                (Position(2, 4), Position(2, 9), 1),
                (Position(2, 9), Position(3, 0), 0),
                (Position(1, 0), Position(3, 0), 0),
            ]
        );
    }

    #[test]
    fn changes_with_one_position_stay_together() {
        let mut assembler = assembler(1);
        for _ in 0..3 {
            assert!(assembler.add(ONE, change(Position(2, 1))).is_none());
        }
        assert_eq!(stretch(&assembler.add(ONE, change(Position(2, 2))).unwrap()), (Position(1, 0), Position(2, 1), 3));
    }

    #[test]
    fn after_a_rewind_the_stretch_begins_again_at_the_last_complete_read() {
        let mut assembler = assembler(10);
        assembler.add(ONE, change(Position(2, 1)));
        assembler.flush(Position(2, 1));
        assembler.rewind(Position(1, 0));
        assembler.add(ONE, change(Position(3, 1)));
        assert_eq!(stretch(&assembler.flush(Position(3, 3))[0]), (Position(1, 0), Position(3, 3), 1));
    }
}
