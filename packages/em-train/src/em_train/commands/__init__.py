"""The commands of `emtrain`: to learn, to judge what was learned, and to use it."""
