//! The commit that this njoule was built from: what `git` in reports says.
//!
//! The build script finds it (`cli/build/checkout.rs`). It is what was checked out then; whether files had been changed since is
//! not known.

/// The commit in hexadecimal digits; `None` of a build without a repository.
pub fn of_this_build() -> Option<&'static str> {
    Some(env!("NJOULE_COMMIT")).filter(|commit| !commit.is_empty())
}

#[cfg(test)]
#[path = "../build/checkout.rs"]
mod checkout;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::checkout::{Checkout, read};

    const A: &str = "0123456789abcdef0123456789abcdef01234567";
    const B: &str = "89abcdef0123456789abcdef0123456789abcdef";

    fn put(root: &Path, path: &str, text: &str) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_branch_a_tag_and_a_bare_commit_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let head = put(root, ".git/HEAD", "ref: refs/heads/main\n");
        let branch = put(root, ".git/refs/heads/main", &format!("{A}\n"));
        put(root, ".git/packed-refs", &format!("{B} refs/heads/main\n"));
        assert_eq!(read(root), Checkout { commit: Some(A.to_owned()), watched: vec![head.clone(), branch.clone()] });
        // Packed: the file is gone, and comes again with the next commit.
        fs::remove_file(branch).unwrap();
        let packed = format!("# pack-refs with: peeled\n{A} refs/heads/main2\n{B} refs/heads/main\n^{A}\n");
        let packed = put(root, ".git/packed-refs", &packed);
        let heads = root.join(".git/refs/heads");
        assert_eq!(read(root), Checkout { commit: Some(B.to_owned()), watched: vec![head.clone(), heads, packed] });
        put(root, ".git/HEAD", &A.to_uppercase());
        assert_eq!(read(root), Checkout { commit: Some(A.to_owned()), watched: vec![head] });
    }

    #[test]
    fn a_worktree_has_its_own_head_and_the_refs_of_its_repository() {
        let dir = tempfile::tempdir().unwrap();
        let (main, tree) = (dir.path().join("main"), dir.path().join("tree"));
        put(&main, ".git/HEAD", "ref: refs/heads/main\n");
        put(&main, ".git/refs/heads/main", A);
        let branch = put(&main, ".git/refs/heads/deep/side", B);
        put(&main, ".git/worktrees/tree/HEAD", "ref: refs/heads/deep/side\n");
        put(&main, ".git/worktrees/tree/commondir", "../..\n");
        put(&tree, ".git", "gitdir: ../main/.git/worktrees/tree\n");
        let found = read(&tree);
        assert_eq!(found.commit.as_deref(), Some(B));
        assert_eq!(found.watched.len(), 4, "{found:?}");
        assert!(found.watched.iter().all(|path| path.exists()), "{found:?}");
        assert_eq!(found.watched[3].canonicalize().unwrap(), branch.canonicalize().unwrap());
    }

    #[test]
    fn what_is_no_repository_gives_none_and_watches_nothing_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        // A tarball within somebody else's repository.
        put(root, ".git/HEAD", A);
        fs::create_dir(root.join("inner")).unwrap();
        assert_eq!(read(&root.join("inner")), Checkout::default());
        for head in ["", "ref: refs/heads/none", "ref: ../../x", "ref: refs/../../../HEAD", "abc", &format!("{A}0")] {
            put(root, ".git/HEAD", head);
            let found = read(root);
            assert_eq!(found.commit, None, "{head}");
            assert!(found.watched.iter().all(|path| path.exists()), "{head}: {found:?}");
        }
        put(root, "inner/.git", "gitdir: /nowhere/at/all");
        assert_eq!(read(&root.join("inner")).commit, None);
        fs::write(root.join(".git/HEAD"), [0xff, 0xfe, 0]).unwrap();
        assert_eq!(read(root), Checkout::default());
    }
}
