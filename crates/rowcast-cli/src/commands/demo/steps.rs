//! Single steps as they flow: an insert, an update, a delete.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rowcast::batch::Batch;
use rowcast::cache::{Cached, Link};
use sea_orm::{DatabaseConnection, TransactionTrait};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::story::{Step, Story};
use super::tap::Tapped;
use super::watch::Watch;
use super::{PATIENCE, Stage, user};

/// Shows the three steps.
pub async fn show<L: Link>(
    db: &DatabaseConnection,
    stage: &Stage,
    watch: &Watch,
    batches: &mut UnboundedReceiver<Tapped>,
    link: &mut L,
    story: &Story,
) -> anyhow::Result<()> {
    // The database numbers from 1.
    let key = format!("{}user:1", stage.prefix);
    for (number, title) in ["Insert a user", "Change the name", "Delete the user"].into_iter().enumerate() {
        let before = value(link, &key).await?;
        let txn = db.begin().await?;
        let row = match number {
            0 => row_text(&user::insert(&txn, "John Doe", "john@example.com").await?),
            1 => row_text(&user::rename(&txn, 1, "John Q. Doe").await?),
            _ => {
                user::delete(&txn, 1).await?;
                "gone from users".to_owned()
            }
        };
        let committing = Instant::now();
        txn.commit().await?;
        let written = timeout(PATIENCE, watch.written(&key)).await.context("the change did not arrive in the cache")?;
        let batch = timeout(Duration::from_secs(1), batch_with(batches, &key)).await.context("the batch was not seen")??;
        let after = value(link, &key).await?;
        story.step(&Step { title, row, batch, key: &key, before, after, took: written.saturating_duration_since(committing) })?;
    }
    Ok(())
}

fn row_text(user: &user::Model) -> String {
    format!("id {}, name {}, email {}", user.id, user.name, user.email)
}

/// The next batch that carries a change of `key`.
async fn batch_with(batches: &mut UnboundedReceiver<Tapped>, key: &str) -> anyhow::Result<String> {
    while let Some((partition, body)) = batches.recv().await {
        let batch = Batch::decode(&body, partition)?;
        if batch.changes.iter().any(|change| change.key == key) {
            let text = String::from_utf8(body).context("a batch is text")?;
            return Ok(broken(&text));
        }
    }
    bail!("the publisher has ended")
}

/// The text of a batch, broken into lines where JSON allows it, so that it can be read.
fn broken(batch: &str) -> String {
    let breaks = [
        (",\"lineage\":", " "),
        (",\"partition\":", " "),
        (",\"mapping\":", " "),
        (",\"changes\":", " "),
        (",\"row\":", "   "),
        (",\"at\":", "   "),
    ];
    let lines = breaks.iter().fold(batch.to_owned(), |text, (part, indent)| text.replacen(part, &format!(",\n{indent}{}", &part[1..]), 1));
    lines.replace("\n{", "\n  {")
}

async fn value<L: Link>(link: &mut L, key: &str) -> anyhow::Result<String> {
    let values = link.values(&[key.to_owned()]).await?;
    Ok(match values.into_iter().next().flatten() {
        None => "(nil)".to_owned(),
        Some(Cached::Text(text)) => String::from_utf8_lossy(&text).into_owned(),
        Some(other) => bail!("the cache holds {other:?} under {key}"),
    })
}
