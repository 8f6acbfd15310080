//! What every engine must do. Each rule is a function that runs on SQLite and on a real etcd.

mod bed;
mod etcd_server;
mod lists;
mod rules;

pub(super) use bed::Bed;
pub(super) use etcd_server::EtcdServer;
pub(super) use rules::seq;
pub(super) use rules::succeeded;

/// Makes of each rule a test on SQLite and one on etcd.
macro_rules! on_every_engine {
    ($($module:ident :: $rule:ident),* $(,)?) => {
        mod on_sqlite {
            $(
                #[tokio::test]
                async fn $rule() {
                    super::$module::$rule(&super::Bed::sqlite()).await;
                }
            )*
        }

        mod on_etcd {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                #[ignore = "needs etcd"]
                async fn $rule() {
                    super::$module::$rule(&super::Bed::etcd()).await;
                }
            )*
        }
    };
}

on_every_engine!(
    rules::written_records_are_there_after_reopening,
    rules::a_key_is_used_once_per_principal_method_and_target,
    rules::many_writers_are_all_answered_and_one_of_each_key_wins,
    rules::of_updates_from_one_revision_one_is_applied,
    rules::writes_are_numbered_in_order_and_found_by_their_numbers,
    rules::numbers_go_on_after_a_restart_and_after_their_records_expired,
    rules::only_expired_records_are_removed_and_the_highest_number_is_kept,
    rules::unknown_outcomes_are_counted_until_they_are_acknowledged,
    rules::records_of_newer_formats_are_set_aside,
    rules::annotations_are_replaced_removed_and_there_after_reopening,
    lists::every_query_answers_what_a_plain_filter_does,
    lists::the_work_for_a_page_and_for_a_count_is_limited,
);
