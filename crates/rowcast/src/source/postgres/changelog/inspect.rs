//! How far the changelog is, and one row as it is now.

use std::time::Duration;

use super::super::super::{Backlog, Error};
use super::super::PostgresSettings;
use super::super::visibility::Snapshot;
use super::super::wire::{Connection, Fault};
use super::install::{self, Meta};
use super::session::end_of;

const PATIENCE: Duration = Duration::from_secs(60);

/// The state of the changelog; `None` where nothing is installed.
pub async fn waiting(settings: &PostgresSettings) -> Result<Option<Backlog>, Error> {
    let mut connection = settings.connect("looking at it").await?;
    let explain = settings.explain("looking at the changelog");
    let Some(meta) = install::meta(&mut connection).await.map_err(&explain)? else { return Ok(None) };
    backlog(&mut connection, meta).await.map(Some).map_err(&explain)
}

/// What has not been forgotten.
pub(super) async fn backlog(connection: &mut Connection, meta: Meta) -> Result<Backlog, Fault> {
    let sql = format!(
        "SELECT (SELECT count(*) FROM rowcast.changelog WHERE o.snapshot IS NULL OR NOT pg_visible_in_snapshot(xid, o.snapshot)), \
         coalesce((SELECT max(number) FROM rowcast.read), 0), coalesce(o.number, 0), {} \
         FROM (SELECT) AS one LEFT JOIN (SELECT number, snapshot FROM rowcast.read ORDER BY number LIMIT 1) o ON true",
        install::BASE
    );
    let answers = connection.query(&sql, PATIENCE).await?;
    let answer = answers.first().ok_or_else(|| Fault::Lost("the server gave no answer about the changelog".to_owned()))?;
    let (newest, oldest): (u64, u64) = (answer.number(1)?, answer.number(2)?);
    Ok(Backlog {
        rows: answer.number(0)?,
        newest: end_of(newest).0,
        forgotten: end_of(oldest).0,
        lineage: install::lineage(answer.text(3)?, meta.generation.as_deref().unwrap_or_default()),
        pipeline: meta.pipeline,
    })
}

/// Whose history it is, and the first part of a position that has all that `seen` sees; `None` where nothing is installed.
pub(in super::super) async fn as_of(connection: &mut Connection, seen: &Snapshot) -> Result<Option<(String, u64)>, Fault> {
    let Some(meta) = install::meta(connection).await? else { return Ok(None) };
    let sql = format!(
        "SELECT {}, coalesce(n.number, 0), coalesce((SELECT true FROM rowcast.changelog c WHERE NOT pg_visible_in_snapshot(c.xid, n.snapshot) \
         AND pg_visible_in_snapshot(c.xid, '{seen}') LIMIT 1), false) \
         FROM (SELECT) AS one LEFT JOIN (SELECT number, snapshot FROM rowcast.read ORDER BY number DESC LIMIT 1) n ON true",
        install::BASE
    );
    let answers = connection.query(&sql, PATIENCE).await?;
    let answer = answers.first().ok_or_else(|| Fault::Lost("the server gave no answer about the changelog".to_owned()))?;
    let lineage = install::lineage(answer.text(0)?, meta.generation.as_deref().unwrap_or_default());
    // What no read has seen yet comes with the next one.
    let number: u64 = answer.number(1)?;
    Ok(Some((lineage, end_of(number).0 + u64::from(answer.is_true(2)))))
}
