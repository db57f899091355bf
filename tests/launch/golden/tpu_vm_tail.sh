gcloud compute tpus queued-resources ssh run1 --node=0 --worker=0 '--command=tail -n 100 -F run1.log' --zone=us-west4-a --project=mine
