//! The names of rowcast's own keys in the cache.

use super::{Put, Written};
use crate::change::{Partition, Run, Table};

/// What every key of rowcast's own begins with, in whatever pipeline.
const OWN: &str = "rowcast:{";

/// Whether `key` is of rowcast's own, so that no row may stand there and no sweep may look at it.
pub(super) fn is_own(key: &str) -> bool {
    key.starts_with(OWN)
}

/// Refuses a block that would put a row where rowcast keeps something of its own. To remove such a key is no offence, and
/// nothing happens: no row ever stood there.
pub(super) fn refuse_own(puts: &[(String, Put)]) -> Option<Written> {
    let (key, _) = puts.iter().find(|(key, put)| *put != Put::Gone && is_own(key))?;
    Some(Written::Refused { key: key.clone(), reason: format!("keys that begin with {OWN:?} are rowcast's own") })
}

/// The number of partitions in force.
pub(super) fn layout(pipeline: &str) -> String {
    format!("{OWN}{pipeline}}}:layout")
}

/// What a check writes and removes at once.
pub(super) fn check(pipeline: &str) -> String {
    format!("{OWN}{pipeline}}}:check")
}

/// The checkpoint of a partition.
pub(super) fn checkpoint(pipeline: &str, partition: Partition) -> String {
    format!("{OWN}{pipeline}}}:checkpoint:{partition}")
}

/// One piece of a seen log: the first has the bare name, the others are numbered.
pub(super) fn seen(pipeline: &str, partition: Partition, table: &Table, run: &Run, segment: u64) -> String {
    let first = format!("{OWN}{pipeline}}}:seen:{partition}:{table}:{run}");
    if segment == 0 { first } else { format!("{first}:{segment}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_documented_ones_and_rowcast_knows_its_own() {
        let partition = Partition { number: 3, of: 4 };
        let seen = |segment| seen("shop", partition, &"public.users".into(), &Run("01JH".into()), segment);
        let names = [layout("shop"), checkpoint("shop", partition), seen(0), seen(2)];
        assert_eq!(
            names,
            [
                "rowcast:{shop}:layout",
                "rowcast:{shop}:checkpoint:3of4",
                "rowcast:{shop}:seen:3of4:public.users:01JH",
                "rowcast:{shop}:seen:3of4:public.users:01JH:2"
            ]
        );
        assert!(names.iter().all(|name| is_own(name)));
        assert!(!is_own("rowcast:shop"));
    }
}
