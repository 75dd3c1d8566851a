//! Where each file goes in the shared memory region.
//!
//! Files stand one behind the other in the order of their paths, each at the start of a page.

use super::walk::Found;
use super::walk::SkipReason;
use super::walk::Skipped;
use super::walk::Tree;

/// The smallest region that is offered where the user does not say.
pub const DEFAULT_REGION_SIZE: u64 = 64 << 20;

/// What a larger default region is a multiple of.
const REGION_STEP: u64 = 2 << 20;

/// A file with its place in the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The file.
    pub file: Found,
    /// Its offset from the start of the region.
    pub offset: u64,
}

/// The region's plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The files in the order of their offsets.
    pub files: Vec<Placed>,
    /// What has no place, and what the walk left out.
    pub skipped: Vec<Skipped>,
    /// The region's size in bytes, a multiple of the page size.
    pub region_size: u64,
}

impl Layout {
    /// Places the files of `tree` in a region of `region_size` bytes, or in one that is large enough.
    ///
    /// A file that does not fit is left out and named; later, smaller ones may still fit.
    pub fn new(tree: Tree, region_size: Option<u64>, page: u64) -> Self {
        let region_size =
            region_size.unwrap_or_else(|| default_size(&tree.files, page)) / page * page;
        let mut layout = Self {
            files: Vec::with_capacity(tree.files.len()),
            skipped: tree.skipped,
            region_size,
        };
        let mut next = 0;
        for file in tree.files {
            let end = footprint(file.len, page).and_then(|len| len.checked_add(next));
            match end {
                Some(end) if end <= region_size => {
                    layout.files.push(Placed { file, offset: next });
                    next = end;
                }
                _ => layout.skipped.push(Skipped {
                    reason: SkipReason::NoRoom { len: file.len },
                    path: file.path,
                }),
            }
        }
        layout
    }
}

fn footprint(len: u64, page: u64) -> Option<u64> {
    len.checked_next_multiple_of(page)
}

fn default_size(files: &[Found], page: u64) -> u64 {
    files
        .iter()
        .try_fold(0_u64, |sum, file| {
            sum.checked_add(footprint(file.len, page)?)
        })
        .and_then(|need| need.checked_next_multiple_of(REGION_STEP))
        .map_or(DEFAULT_REGION_SIZE, |need| need.max(DEFAULT_REGION_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(lens: &[u64]) -> Tree {
        Tree {
            files: lens
                .iter()
                .enumerate()
                .map(|(index, &len)| Found {
                    path: format!("{index}").into(),
                    len,
                })
                .collect(),
            skipped: Vec::new(),
        }
    }

    fn offsets(layout: &Layout) -> Vec<u64> {
        layout.files.iter().map(|placed| placed.offset).collect()
    }

    #[test]
    fn files_start_on_pages_one_behind_the_other() {
        let layout = Layout::new(tree(&[1, 4096, 4097, 10]), None, 4096);
        assert_eq!(offsets(&layout), [0, 4096, 8192, 16384]);
        assert_eq!(layout.region_size, DEFAULT_REGION_SIZE);
    }

    #[test]
    fn region_grows_with_the_files() {
        let layout = Layout::new(tree(&[DEFAULT_REGION_SIZE, 1]), None, 4096);
        assert_eq!(layout.region_size, DEFAULT_REGION_SIZE + REGION_STEP);
        assert_eq!(layout.files.len(), 2);
    }

    #[test]
    fn file_without_room_is_named_and_a_smaller_one_takes_the_rest() {
        let layout = Layout::new(tree(&[4096, 8192, 100]), Some(8192), 4096);
        assert_eq!(offsets(&layout), [0, 4096]);
        assert_eq!(layout.files[1].file.path, std::path::Path::new("2"));
        assert_eq!(
            layout.skipped,
            [Skipped {
                path: "1".into(),
                reason: SkipReason::NoRoom { len: 8192 }
            }]
        );
    }

    #[test]
    fn lengths_that_overflow_are_left_out() {
        let layout = Layout::new(tree(&[u64::MAX, 1]), None, 4096);
        assert_eq!(offsets(&layout), [0]);
        assert_eq!(
            layout.skipped[0].reason,
            SkipReason::NoRoom { len: u64::MAX }
        );
    }

    #[test]
    fn region_size_is_cut_to_whole_pages() {
        assert_eq!(Layout::new(tree(&[]), Some(10_000), 4096).region_size, 8192);
    }
}
