use std::os::unix::fs::PermissionsExt;

use super::*;

fn put(key: &str, condition: Condition, value: u32) -> Transaction {
    let mut transaction = Transaction::new();
    transaction
        .put(key, condition, &value)
        .expect("a number has a JSON form");
    transaction
}

async fn number(store: &Embedded, key: &str) -> Option<u32> {
    let record = store.get(key).await.expect("read");
    record.map(|record| record.read().expect("a number"))
}

#[tokio::test]
async fn a_transaction_is_carried_out_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("folder");
    let store = Embedded::open(folder.path()).expect("open");
    let first = store
        .commit(put("a/1", Condition::Absent, 1))
        .await
        .expect("first");

    let mut both = put("a/2", Condition::Absent, 2);
    both.put("a/1", Condition::Absent, &3).expect("put");
    let error = store.commit(both).await.expect_err("a/1 is there");
    assert!(
        matches!(error, StoreError::Conflict { ref key } if key == "a/1"),
        "{error}"
    );
    assert_eq!(number(&store, "a/2").await, None);
    assert_eq!(number(&store, "a/1").await, Some(1));

    let mut both = put("a/2", Condition::Absent, 2);
    both.put("a/1", Condition::Revision(first), &3).expect("put");
    let second = store.commit(both).await.expect("both");
    assert!(second > first);
    let error = store.commit(put("a/1", Condition::Revision(first), 4)).await;
    assert!(matches!(error, Err(StoreError::Conflict { .. })));
    assert_eq!(
        store.get("a/1").await.expect("read").expect("a/1").revision,
        second
    );

    let mut gone = Transaction::new();
    gone.delete("a/1", Condition::Revision(second));
    store.commit(gone).await.expect("delete");
    assert_eq!(number(&store, "a/1").await, None);
}

#[tokio::test]
async fn a_range_ends_with_its_prefix() {
    let folder = tempfile::tempdir().expect("folder");
    let store = Embedded::open(folder.path()).expect("open");
    for key in ["a", "service/1", "service/2", "servicf", "z"] {
        store.commit(put(key, Condition::Any, 1)).await.expect("put");
    }
    let keys: Vec<String> = store
        .range("service/")
        .await
        .expect("range")
        .into_iter()
        .map(|record| record.key)
        .collect();
    assert_eq!(keys, ["service/1", "service/2"]);
    assert_eq!(store.range("").await.expect("range").len(), 5);
}

#[tokio::test]
async fn what_is_committed_is_there_after_opening_again() {
    let folder = tempfile::tempdir().expect("folder");
    let store = Embedded::open(folder.path()).expect("open");
    let revision = store.commit(put("a", Condition::Any, 1)).await.expect("put");
    assert!(matches!(
        Embedded::open(folder.path()),
        Err(StoreError::InUse { .. })
    ));
    drop(store);
    let store = Embedded::open(folder.path()).expect("open again");
    assert_eq!(number(&store, "a").await, Some(1));
    let next = store
        .commit(put("a", Condition::Revision(revision), 2))
        .await
        .expect("put");
    assert!(next > revision, "revisions go on after opening again");
    let mode = fs::metadata(folder.path().join(FILE))
        .expect("file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_file_of_another_layout_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    drop(Embedded::open(folder.path()).expect("open"));
    let database = open(&folder.path().join(FILE)).expect("open the file");
    let transaction = database.begin_write().expect("write");
    transaction
        .open_table(PROPERTIES)
        .expect("table")
        .insert("schema", SCHEMA + 1)
        .expect("insert");
    transaction.commit().expect("commit");
    drop(database);
    let error = Embedded::open(folder.path()).err().expect("another layout");
    assert!(
        matches!(error, StoreError::Schema { found, .. } if found == SCHEMA + 1),
        "{error}"
    );
}

#[tokio::test]
async fn a_crash_while_the_file_is_made_is_no_harm() {
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join("state.redb.new"), b"half").expect("debris");
    let store = Embedded::open(folder.path()).expect("open");
    store.commit(put("a", Condition::Absent, 1)).await.expect("put");
}

#[tokio::test]
async fn writers_at_once_do_not_overwrite_each_other() {
    let folder = tempfile::tempdir().expect("folder");
    let store = Arc::new(Embedded::open(folder.path()).expect("open"));
    let mut seen = store.watch();
    store
        .commit(put("count", Condition::Absent, 0))
        .await
        .expect("put");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            loop {
                let record = store.get("count").await.expect("read").expect("count");
                let next = record.read::<u32>().expect("number") + 1;
                match store
                    .commit(put("count", Condition::Revision(record.revision), next))
                    .await
                {
                    Ok(_) => return,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(number(&store, "count").await, Some(16));
    assert_eq!(*seen.borrow_and_update(), 17);
}
