//! Tests on real servers and on other programs that write to the same database.

mod sqlite;
