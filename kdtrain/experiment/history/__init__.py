"""The runs on disk: their list, what the files of each tell, and the model card of one."""
