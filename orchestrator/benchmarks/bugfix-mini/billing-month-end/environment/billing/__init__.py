"""When subscriptions are charged, and for which days."""

from billing.plans import PLANS, Plan
from billing.schedule import Invoice, Subscription, invoices, next_renewal, renewals

__all__ = ["PLANS", "Invoice", "Plan", "Subscription", "invoices", "next_renewal", "renewals"]
