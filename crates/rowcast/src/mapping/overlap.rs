//! Whether two templates could render the same key, so that rows of two tables would overwrite each other. Pure.

use std::collections::BTreeSet;

use super::template::{ColumnType, Piece, Template};

/// What stands at one place of a key.
#[derive(Clone, Copy)]
enum Atom {
    Sign(char),
    /// One or more characters of a column's value.
    Part(ColumnType),
}

fn atoms(template: &Template) -> Vec<Atom> {
    let atoms = template.pieces().flat_map(|piece| match piece {
        Piece::Literal(literal) => literal.chars().map(Atom::Sign).collect(),
        Piece::Column(column) => vec![Atom::Part(column.kind)],
    });
    atoms.collect()
}

impl Template {
    /// Whether some key could be rendered by either. It may say so of templates that are apart, where only the digits of a number
    /// could tell; never the other way round.
    pub fn overlaps(&self, other: &Template) -> bool {
        let (left, right) = (atoms(self), atoms(other));
        // Both templates read the same characters, each as far as it has come.
        let (mut reached, mut open) = (BTreeSet::from([(0, 0)]), vec![(0, 0)]);
        while let Some((l, r)) = open.pop() {
            if (l, r) == (left.len(), right.len()) {
                return true;
            }
            // Beyond ASCII all characters are alike: they are of no literal.
            for c in ('!'..='~').chain(['é']) {
                for next_left in self.after(&left, l, c) {
                    for next_right in other.after(&right, r, c) {
                        if reached.insert((next_left, next_right)) {
                            open.push((next_left, next_right));
                        }
                    }
                }
            }
        }
        false
    }

    /// How many atoms may have begun after `c`, where `begun` had before it.
    fn after(&self, atoms: &[Atom], begun: usize, c: char) -> impl Iterator<Item = usize> {
        let goes_on = begun > 0 && matches!(atoms[begun - 1], Atom::Part(kind) if self.part_may_hold(kind, c));
        let begins = atoms.get(begun).is_some_and(|atom| match atom {
            Atom::Sign(sign) => *sign == c,
            Atom::Part(kind) => self.part_may_hold(*kind, c),
        });
        goes_on.then_some(begun).into_iter().chain(begins.then_some(begun + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::KeyValue;
    use proptest::prelude::*;

    fn template(text: &str) -> Template {
        let kind = |column: &str| match column {
            "id" => ColumnType::Integer,
            "hash" => ColumnType::Blob,
            "price" => ColumnType::Numeric,
            _ => ColumnType::Text,
        };
        Template::configured(text, |column| Some(kind(column))).unwrap()
    }

    #[test]
    fn templates_that_could_render_one_key_overlap() {
        for (left, right) in [
            ("user:{id}", "user:{name}"),
            ("user:{id}", "user:{id}"),
            ("{name}:x", "y:{name}"),
            ("user:{name}", "{name}:{id}"),
            ("a:{name}", "a:b{id}"),
            ("u:{hash}", "u:{id}"),
            ("x:{price}", "x:{id}"),
        ] {
            assert!(template(left).overlaps(&template(right)), "{left} {right}");
            assert!(template(right).overlaps(&template(left)), "{right} {left}");
        }
    }

    #[test]
    fn templates_that_never_render_one_key_are_apart() {
        for (left, right) in [
            ("user:{id}", "users:{id}"),
            ("user:{id}", "user:{id}:x"),
            ("user:{name}", "user:{name}:x"),
            ("{id}:{n}", "{id}/{n}"),
            ("u:{id}", "u:x{id}"),
            ("u:{hash}", "u:{hash}-x"),
            ("user:{name}", "user:all:{name}"),
        ] {
            assert!(!template(left).overlaps(&template(right)), "{left} {right}");
            assert!(!template(right).overlaps(&template(left)), "{right} {left}");
        }
    }

    proptest! {
        #[test]
        fn what_is_said_to_be_apart_is_apart(
            left in "[a:]{0,2}\\{(id|name)\\}([:.][a]?|[:.]\\{(id|name)\\})?", right in "[a:]{0,2}\\{(id|name)\\}([:.][a]?|[:.]\\{(id|name)\\})?",
            texts in proptest::collection::vec("[a1.:]{1,2}", 4), numbers in proptest::collection::vec(-1_i64..12, 4),
        ) {
            let (left, right) = (template(&left), template(&right));
            prop_assume!(!left.overlaps(&right));
            let keys = |template: &Template| {
                let values = |index: usize| template.columns().map(|column| match column.kind {
                    ColumnType::Integer => KeyValue::Integer(numbers[index]),
                    _ => KeyValue::Text(texts[index].clone()),
                }).collect::<Vec<_>>();
                (0..4).map(|index| template.render(&values(index)).unwrap()).collect::<BTreeSet<_>>()
            };
            prop_assert!(keys(&left).is_disjoint(&keys(&right)), "{} {}", left, right);
            prop_assert!(keys(&left).iter().all(|key| right.parse(key).is_none()), "{} {}", left, right);
        }
    }
}
