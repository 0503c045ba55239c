"""Support tickets of an outdoor shop and the desk that each belongs to, one of six."""

from __future__ import annotations

import random

LABELS = ("billing", "delivery", "returns", "account", "technical", "sales")

ITEMS = ("tent", "rain jacket", "backpack", "camping stove", "head torch", "sleeping bag", "pair of boots", "kayak")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

TEMPLATES = {
    "billing": (
        "I was charged twice for the {item} I bought on {day}.",
        "The invoice for my {item} shows the wrong amount.",
        "Why did you take money from my card on {day}? I cancelled the order.",
        "Please send me a receipt for the {item}, I need it for my taxes.",
        "The discount was not taken off the price of the {item} when I paid.",
        "My bank statement shows two payments to you since {day}.",
        "I paid for the {item} but the order still says unpaid.",
        "Can I get an invoice with our company's VAT number on it?",
        "You billed me for shipping although it was meant to be free.",
        "My gift card was used but the full price was still charged.",
        "The card payment failed on {day} and yet the money is gone.",
        "There is a charge on my credit card that I do not recognise.",
    ),
    "delivery": (
        "My {item} was meant to arrive on {day} and it is still not here.",
        "The tracking page has not changed since {day}.",
        "The courier left the {item} at the wrong house.",
        "Where is my parcel? I ordered the {item} two weeks ago.",
        "Can you bring the {item} on {day} instead, I will not be at home.",
        "The parcel says delivered but nobody rang and nothing is at my door.",
        "I would like to change the address that the {item} is shipped to.",
        "The box arrived on {day} soaking wet and half open.",
        "How long does shipping of a {item} to the islands take?",
        "Only half of my order was in the parcel, the {item} is missing.",
        "The driver did not wait for me on {day} and took the {item} away again.",
        "Is my {item} already on its way?",
    ),
    "returns": (
        "The {item} does not fit, I want to send it back.",
        "How do I return a {item} that I bought on {day}?",
        "Please give me a refund for the {item}, I do not like the colour.",
        "I would like to swap the {item} for a larger size.",
        "I sent the {item} back on {day} and have not had my refund.",
        "Where do I find the label to send my {item} back?",
        "Can I still return the {item} after thirty days?",
        "I ordered two sizes of {item} and want to give one of them back.",
        "The {item} was a gift and she already has one, can I exchange it?",
        "I changed my mind about the {item}, please take it back.",
        "You sent me the wrong {item}, how can I exchange it?",
        "Do I have to pay the postage if I return the {item}?",
    ),
    "account": (
        "I forgot my password and the reset mail never comes.",
        "Please change the email address on my profile.",
        "I cannot log in since {day}, it says my account is locked.",
        "How do I delete my account and all my data?",
        "I have two accounts by mistake, can you merge them?",
        "Somebody else has logged in to my account on {day}.",
        "The code for two-step login is never sent to my phone.",
        "I want to change the name on my profile after my wedding.",
        "How can I switch off the newsletter that I get every {day}?",
        "My login works on the phone but not on the laptop.",
        "I never got the mail to confirm my registration on {day}.",
        "Please update the phone number that is stored in my profile.",
    ),
    "technical": (
        "The app crashes when I open the page of the {item}.",
        "Your website shows an error 500 since {day}.",
        "The search on your site finds nothing when I type {item}.",
        "The pictures of the {item} do not load in my browser.",
        "The button to put the {item} into the basket does nothing.",
        "After the update on {day} the app is frozen on a white screen.",
        "The map in the app shows every shop in the middle of the sea.",
        "The page turns blank as soon as I choose a size for the {item}.",
        "Your app uses up my battery within an hour since {day}.",
        "The checkout page keeps loading for ever on my tablet.",
        "I get an error message whenever I try to upload a photo of my {item}.",
        "The filter for colours is broken on the page with every {item}.",
    ),
    "sales": (
        "Do you have the {item} in green?",
        "Which {item} would you recommend for a week in the mountains?",
        "When will the {item} be back in stock?",
        "Is there a discount if we buy twenty of the {item} for our club?",
        "What is the difference between your two models of {item}?",
        "Is the {item} good for the winter?",
        "Will the price of the {item} go down in the sale on {day}?",
        "How heavy is the {item} and does it fit in a small car?",
        "Does the {item} come with a bag to carry it?",
        "Can I try the {item} in your shop on {day}?",
        "I am looking for a {item} for a child of six, what do you have?",
        "Do you also sell a {item} for left-handed people?",
    ),
}

HELD_OUT = {
    "billing": (
        "The total on my bill is higher than what I saw at the checkout.",
        "I see a second charge of 89 euros on my credit card.",
        "Please send the invoice for order 5512 to our accounting office.",
        "My voucher was accepted, but you still charged me the full price.",
        "Money was taken from my card for an order I never made.",
        "I need a receipt for what I paid last month.",
    ),
    "delivery": (
        "It has been ten days and my package has not arrived.",
        "The courier says he was here, but I was at home all day and saw nobody.",
        "Please ship my order to my office and not to my home address.",
        "The tracking number you gave me does not show anything.",
        "When will my order arrive? I need it before the weekend.",
        "My parcel was left in the rain in front of the wrong door.",
    ),
    "returns": (
        "These boots are too small, I would like to send them back.",
        "When do I get my refund? You have had the jacket back for a week.",
        "I want to exchange the blue one for a red one.",
        "What is the last day on which I can return my order?",
        "The return label was not in the box, how do I send this back?",
        "I do not need the second sleeping bag any more, please take it back.",
    ),
    "account": (
        "I no longer have access to my old email, how can I log in?",
        "Please remove my account from your system.",
        "My password is refused although I am sure that it is right.",
        "I would like to change the birthday on my profile.",
        "Please stop sending me your newsletter.",
        "I think my account has been hacked.",
    ),
    "technical": (
        "The website is very slow and then shows an error message.",
        "The app closes by itself every time I open my basket.",
        "None of the pictures on your page are loading.",
        "When I press the buy button nothing happens.",
        "Since the last update the app does not start on my phone.",
        "The page jumps back to the top whenever I pick a colour, it is broken.",
    ),
    "sales": (
        "Which of your tents would you recommend for four people?",
        "Do you have this jacket in size XL?",
        "Is the blue backpack going to be in stock again before summer?",
        "What would a set of thirty head torches cost for our school?",
        "Is this stove suitable for cooking at high altitude?",
        "What is the difference between the light and the classic kayak?",
    ),
}


def train() -> list[tuple[str, str]]:
    """Up to 40 different tickets for each label."""
    chance = random.Random(11)
    pairs = []
    for label in LABELS:
        texts: set[str] = set()
        for round_number in range(400):
            template = TEMPLATES[label][round_number % len(TEMPLATES[label])]
            texts.add(template.format(item=chance.choice(ITEMS), day=chance.choice(DAYS)))
            if len(texts) == 40:
                break
        pairs += [(text, label) for text in sorted(texts)]
    chance.shuffle(pairs)
    return pairs


def held_out() -> list[tuple[str, str]]:
    return [(text, label) for label in LABELS for text in HELD_OUT[label]]
